"""A chart as data, drawn twice: by matplotlib for files, by plotly for the page."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator

from .figures import new_figure, save
from .styles import LINE_WIDTH, Style

LOOKS = {"line": "lines+markers", "points": "markers", "curve": "lines", "star": "markers"}  # plotly's modes
MOST_BANDS = 8
WIDTH, HEIGHT = 7.2, 4.6  # inches of a figure
HANDLE, LETTER = 0.55, 0.072  # and of what stands before a name in its legend, and of a letter
POINTED_AT = Markup("<b>{}</b><br>%{{text}}, %{{y:.4~f}}<extra></extra>")


@dataclass
class Series:
    """One line or set of points; `spread` is a band around a line, and error bars of points, of so much on both sides.

    Looks: a "line" with marks, "points" alone, a "curve" without marks, or a "star" for a single point to be noticed.
    `named` are the values of x to tell where points were set a little aside, so as not to lie on one another.
    `owner` is the number of the variant that it belongs to and with whose style it is drawn; None for neither.
    """

    name: str
    x: list[float]
    y: list[float]
    spread: list[float] | None = None
    owner: int | None = None
    style: Style | None = None
    look: str = "line"
    named: list[float] | None = None


@dataclass
class Chart:
    """Series on common axes, and in a caption how to read them; `x_ticks` are the values to name on a log axis.

    `limit` is a value on the horizontal axis beyond which is too much, a line. `ends` are the least and the most that
    there can be on the vertical one: bars and bands end there.
    """

    key: str
    title: str
    caption: str
    x: str
    y: str
    series: list[Series] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False
    x_ticks: list[float] | None = None
    limit: float | None = None
    ends: tuple[float, float] = (-math.inf, math.inf)

    def reach(self, series: Series) -> tuple[list[float], list[float]]:
        """Return how far the bars of a series, or its band, go down and up from it."""
        low, high = self.ends
        parts = list(zip(series.y, series.spread or (), strict=False))
        return [y - max(low, y - s) for y, s in parts], [min(high, y + s) - y for y, s in parts]

    def ticks(self, axis: str) -> list[float]:
        """Return the values to name on an axis when it is logarithmic."""
        values = [value for series in self.series for value in getattr(series, axis) if value > 0]
        given = self.x_ticks if axis == "x" else None
        return given or log_ticks(min(values), max(values)) if values else []

    def widened(self) -> tuple[float, float] | None:
        """Return a range of a logarithmic horizontal axis whose values lie close together, or are one; else None."""
        values = [value for series in self.series for value in series.x if value > 0]
        if self.limit is not None:
            values.append(self.limit)
        if not self.log_x or not values or max(values) >= 2 * min(values):
            return None
        return min(values) / 1.5, max(values) * 1.5


@dataclass
class Grid(Chart):
    """Shares from 0 to 1 by two things that are named, as a heat map: a row of `cells` for each of the `lines`."""

    columns: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    cells: list[list[float]] = field(default_factory=list)


def banded(chart: Chart, said: str) -> Chart:
    """Add to a caption what the bands are; those of many lines, which would hide one another, are left out."""
    if sum(series.spread is not None for series in chart.series) > MOST_BANDS:
        for series in chart.series:
            series.spread = None
    elif any(series.spread for series in chart.series):
        chart.caption += said
    return chart


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a log axis: 1, 2 and 5 of each decade, fewer over many, and even steps within a few."""
    if high < 6 * low:
        candidates = [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]
    else:
        parts = (1, 2, 5) if high < 1e3 * low else (1,)
        candidates = [part * 10.0**power for power in range(-12, 25) for part in parts]
    return [value for value in candidates if low / 1.2 <= value <= 1.2 * high and value > 0]


def draw(chart: Chart, folder: Path) -> list[Path]:
    """Write a chart as PNG and SVG."""
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_subplot()
    if isinstance(chart, Grid):
        _draw_grid(axes, chart)
        return [save(figure, folder / f"{chart.key}.{kind}") for kind in ("png", "svg")]
    for series in chart.series:
        _draw_series(axes, series, chart)
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    for name, log in (("x", chart.log_x), ("y", chart.log_y)):
        axis = axes.xaxis if name == "x" else axes.yaxis
        if log:
            getattr(axes, f"set_{name}scale")("log")
            axis.set_major_locator(FixedLocator(chart.ticks(name)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(lambda value, _: named(value))
        elif name == "x":
            axis.set_major_formatter(EngFormatter(sep=" "))
    if widened := chart.widened():
        axes.set_xlim(*widened)
    axes.grid(alpha=0.3)
    if chart.limit:
        axes.axvline(chart.limit, label="budget", color="0.35", linestyle="--", linewidth=1.2, zorder=1)
    handles, labels = axes.get_legend_handles_labels()
    room = int(WIDTH / (HANDLE + LETTER * max(map(len, labels), default=1)))
    columns = max(1, min(room, len(labels) if len(labels) < 6 else 4))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    for text in (*legend.get_texts(), axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_parse_math(False)  # a name may hold dollars
    return [save(figure, folder / f"{chart.key}.{kind}") for kind in ("png", "svg")]


def _draw_grid(axes: Axes, chart: Grid) -> None:
    """Draw a heat map in grey, with its numbers."""
    axes.imshow(chart.cells, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for line, shares in enumerate(chart.cells):
        for column, share in enumerate(shares):
            axes.text(column, line, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    axes.set_xticks(range(len(chart.columns)), chart.columns)
    axes.set_yticks(range(len(chart.lines)), chart.lines)
    axes.title.set_parse_math(False)


def _draw_series(axes: Axes, series: Series, chart: Chart) -> None:
    """Draw one series; only lines and points have an entry in the legend."""
    if series.style is None:
        axes.plot(series.x, series.y, label=series.name, color="0.55", linestyle=":", linewidth=1.2, zorder=1)
        return
    look, (down, up) = series.style.matplotlib, chart.reach(series)
    if series.look == "points":
        bars = [down, up] if series.spread else None
        axes.errorbar(series.x, series.y, yerr=bars, label=series.name, capsize=4, **look | {"linestyle": ""})
    elif series.look == "star":
        axes.plot(series.x, series.y, markersize=13, **look | {"marker": "*", "markeredgecolor": "white"})
    elif series.look == "curve":
        axes.plot(series.x, series.y, linewidth=1.1, **look | {"marker": ""})
    else:
        every = max(1, len(series.x) // 12)  # marks of many points would hide the line
        axes.plot(series.x, series.y, label=series.name, markersize=4, markevery=every, linewidth=1.3, **look)
        if series.spread:
            axes.fill_between(series.x, *band(series.y, down, up), color=look["color"], alpha=0.15, linewidth=0)


def band(y: list[float], down: list[float], up: list[float]) -> tuple[list[float], list[float]]:
    """Return the lower and the upper edge of a band around a line."""
    return [at - one for at, one in zip(y, down, strict=True)], [at + one for at, one in zip(y, up, strict=True)]


def named(value: float) -> str:
    """Return a number as an axis shows it."""
    return f"{value:,.6g}" if value < 1e6 else EngFormatter(sep=" ")(value)


def to_plotly(chart: Chart) -> dict:
    """Return a chart as plotly's JSON, without colours: the page has two sets of them."""
    if isinstance(chart, Grid):
        return _grid_to_plotly(chart)
    traces = [trace for series in chart.series for trace in _traces(series, *chart.reach(series))]
    layout: dict[str, Any] = {
        "hovermode": "closest",
        "showlegend": False,
        "margin": {"t": 8, "r": 12, "l": 56, "b": 44},
    }
    for axis, label, log in (("x", chart.x, chart.log_x), ("y", chart.y, chart.log_y)):
        values = chart.ticks(axis)
        layout[f"{axis}axis"] = {
            "title": {"text": escape(label), "standoff": 8}, "type": "log" if log else "linear", "automargin": True,
            "tickvals": values, "ticktext": [named(value) for value in values], "zeroline": False,
            "tickmode": "array" if log else "auto",
        }  # fmt: skip
    if widened := chart.widened():
        layout["xaxis"]["range"] = [math.log10(end) for end in widened]
    if chart.limit:
        layout["margin"]["t"] = 22  # room for the word above the line
        inwards = "right" if chart.limit > statistics.median(chart.ticks("x")) else "left"  # phones cut off the rest
        dashes = {"color": "#888", "dash": "8px,5px", "width": 1.5}
        layout["shapes"] = [{"type": "line", "x0": chart.limit, "x1": chart.limit, "yref": "paper", "y0": 0, "y1": 1,
                             "line": dashes, "label": {"text": "budget", "textposition": "end", "textangle": 0,
                                                       "xanchor": inwards}}]  # fmt: skip
    return {"data": traces, "layout": layout}


def _grid_to_plotly(chart: Grid) -> dict:
    """Return a heat map as plotly's JSON."""
    trace = {
        "type": "heatmap", "x": chart.columns, "y": chart.lines, "z": chart.cells, "zmin": 0, "zmax": 1, "meta": None,
        "colorscale": "Greys", "reversescale": True, "texttemplate": "%{z:.0%}", "showscale": False,
        "hovertemplate": "%{x}, %{y}: %{z:.1%}<extra></extra>",
    }  # fmt: skip
    layout = {"showlegend": False, "margin": {"t": 8, "r": 12, "l": 56, "b": 44}}
    for axis, label in (("x", chart.x), ("y", chart.y)):
        layout[f"{axis}axis"] = {"title": {"text": escape(label), "standoff": 8}, "type": "category",
                                 "automargin": True}  # fmt: skip
    return {"data": [trace], "layout": layout}


def _traces(series: Series, down: list[float], up: list[float]) -> list[dict]:
    """Return the traces of a series: the band first, so that the line lies over it."""
    owner = {"meta": series.owner, "x": series.x, "y": series.y, "type": "scatter"}
    if series.style is None:
        dots = {"dash": "2px,4px", "width": 1.5}
        return [owner | {"mode": "lines", "line": dots, "hoverinfo": "skip", "name": escape(series.name)}]
    look, spread = series.style, series.spread
    trace: dict[str, Any] = owner | {
        "name": escape(series.name), "mode": LOOKS[series.look],
        "line": {"dash": look.pixels.replace(",", "px,") + "px" if look.dash else "solid", "width": LINE_WIDTH},
        "marker": {"size": {"star": 15, "points": 10}.get(series.look, 8), "maxdisplayed": 12,
                   "symbol": "star" if series.look == "star" else look.mark[1]},
        "text": [named(value) for value in series.named or series.x], "hovertemplate": POINTED_AT.format(series.name),
    }  # fmt: skip
    if spread:
        trace |= {
            "customdata": spread,
            "hovertemplate": trace["hovertemplate"].replace("~f}", "~f} ± %{customdata:.4~f}"),
        }
    if spread and series.look == "points":
        trace["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5,
                            "width": 5}  # fmt: skip
    if not spread or series.look == "points":
        return [trace]
    lower, upper = band(series.y, down, up)
    around = owner | {"x": series.x + series.x[::-1], "y": upper + lower[::-1], "mode": "lines", "fill": "toself",
                    "line": {"width": 0}, "hoverinfo": "skip", "name": escape(series.name)}  # fmt: skip
    return [around, trace]
