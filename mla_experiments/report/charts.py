"""A chart as data, drawn twice: by matplotlib for files, by plotly for the page."""

from dataclasses import dataclass, field
from pathlib import Path

from .figures import STYLES, new_figure, save

PLOTLY_DASHES = ["solid", "dash", "dashdot", "dot", "longdashdot"]
PLOTLY_MARKS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "triangle-left",
                "triangle-right", "star"]  # fmt: skip


@dataclass
class Series:
    """One line or set of points: values, and a band or error bars of so much on both sides."""

    name: str
    x: list[float]
    y: list[float]
    spread: list[float] | None = None
    style: int = 0


@dataclass
class Chart:
    """Series on common axes; `points` draws marks with error bars, otherwise lines with bands."""

    key: str
    title: str
    x: str
    y: str
    series: list[Series] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False
    points: bool = False


def draw(chart: Chart, folder: Path) -> list[Path]:
    """Write a chart as PNG and SVG."""
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    for series in chart.series:
        style = STYLES[series.style % len(STYLES)]
        if chart.points:
            axes.errorbar(series.x, series.y, yerr=series.spread, label=series.name, capsize=4, **style)
        else:
            axes.plot(series.x, series.y, label=series.name, markersize=4, markevery=0.1, linewidth=1.3, **style)
            if series.spread:
                low, high = zip(*((y - s, y + s) for y, s in zip(series.y, series.spread, strict=True)), strict=True)
                axes.fill_between(series.x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    axes.set_xscale("log" if chart.log_x else "linear")
    axes.set_yscale("log" if chart.log_y else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return [save(figure, folder / f"{chart.key}.{kind}") for kind in ("png", "svg")]


def to_plotly(chart: Chart) -> dict:
    """Return a chart as plotly's JSON."""
    traces = []
    for series in chart.series:
        color = STYLES[series.style % len(STYLES)]["color"]
        bars = {"type": "data", "array": series.spread, "visible": True} if series.spread else None
        traces.append(
            {
                "type": "scatter", "name": series.name, "x": series.x, "y": series.y,
                "mode": "markers" if chart.points and len(series.x) == 1 else "lines+markers",
                "line": {"color": color, "dash": PLOTLY_DASHES[series.style % len(PLOTLY_DASHES)]},
                "marker": {"color": color, "size": 8, "symbol": PLOTLY_MARKS[series.style % len(PLOTLY_MARKS)]},
                "error_y": bars,
            }
        )  # fmt: skip
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True}
    layout = {
        "title": {"text": chart.title},
        "xaxis": axis | {"title": {"text": chart.x}, "type": "log" if chart.log_x else "linear"},
        "yaxis": axis | {"title": {"text": chart.y}, "type": "log" if chart.log_y else "linear"},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.25}, "margin": {"t": 48, "r": 16, "l": 56, "b": 48},
    }  # fmt: skip
    return {"data": traces, "layout": layout, "config": {"responsive": True, "displayModeBar": False}}
