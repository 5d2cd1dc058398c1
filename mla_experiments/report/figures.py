"""What all figures share: styles that can be told apart without colour, and lines drawn from the rows of a table."""

from itertools import cycle, islice
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .styles import COLORS, style

STYLES = [style(index, index).matplotlib for index in range(len(COLORS))]


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """Return an empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is: between two dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of its suffix, whole or not at all."""
    scratch = path.with_name(f"{path.stem}.partial{path.suffix}")
    figure.savefig(scratch)
    scratch.replace(path)
    return path


def draw_rows(rows: list[dict], path: Path, *, x: str, y: str, line: str, panel: str | None, title: str) -> Path:
    """Draw one column against another on logarithmic axes, with a line for every value of a third.

    Args:
        rows: a table; where it has columns "from" and "to", they are drawn as ranges.
        path: of the PNG.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        line: column whose values are the lines.
        panel: column whose values are panels side by side; None for a single one.
        title: above all panels.
    """
    panels = list(dict.fromkeys(row[panel] for row in rows)) if panel else [None]
    lines = list(dict.fromkeys(row[line] for row in rows))
    styles = dict(zip(lines, islice(cycle(STYLES), len(lines)), strict=True))
    figure = new_figure(2.2 + 4.2 * len(panels), 4.2)
    for axes, value in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        chosen = [row for row in rows if panel is None or row[panel] == value]
        for name in lines:
            points = [row for row in chosen if row[line] == name]
            where = [row[x] for row in points]
            axes.plot(where, [row[y] for row in points], label=str(name), markersize=4, linewidth=1.2, **styles[name])
            if y in ("ms", "s"):
                ranges = [row["from"] for row in points], [row["to"] for row in points]
                axes.fill_between(where, *ranges, color=styles[name]["color"], alpha=0.12, linewidth=0)
        ticks = sorted({row[x] for row in chosen})
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=f"{panel} {value}" if panel else "")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30, fontsize="small")
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small", title=line)
    figure.suptitle(title)
    return save(figure, path)
