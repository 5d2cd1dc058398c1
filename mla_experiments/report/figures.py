"""What all figures share: styles that can be told apart without colour, and lines drawn from the rows of a table."""

from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..manifest import scratch_for
from .styles import COLORS, style

OURS = "mla-experiments"  # what a PNG says that it was drawn by

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
    scratch = scratch_for(path)
    figure.savefig(scratch, format=path.suffix[1:], metadata={"Software": OURS} if path.suffix == ".png" else None)
    scratch.replace(path)
    return path


def is_ours(path: Path) -> bool:
    """Return whether a PNG was drawn here: it says so at its beginning."""
    with open(path, "rb") as file:
        return f"Software\0{OURS}".encode() in file.read(1024)


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
    styles = dict(zip(dict.fromkeys(row[line] for row in rows), cycle(STYLES), strict=False))
    figure = new_figure(2.2 + 4.2 * len(panels), 4.2)
    for axes, value in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        chosen = [row for row in rows if panel is None or row[panel] == value]
        for name, look in styles.items():
            _draw_line(axes, [row for row in chosen if row[line] == name], x, y, str(name), look)
        _set_logarithmic(axes, sorted({row[x] for row in chosen}))
        axes.set(xlabel=x, ylabel=y, title=f"{panel} {value}" if panel else "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small", title=line)
    figure.suptitle(title)
    return save(figure, path)


def _draw_line(axes: Axes, points: list[dict], x: str, y: str, name: str, look: dict) -> None:
    """Draw a line through points, on the range of what was timed."""
    where = [point[x] for point in points]
    axes.plot(where, [point[y] for point in points], label=name, markersize=4, linewidth=1.2, **look)
    if y in ("ms", "s"):
        low, high = ([point[end] for point in points] for end in ("from", "to"))
        axes.fill_between(where, low, high, color=look["color"], alpha=0.12, linewidth=0)


def _set_logarithmic(axes: Axes, ticks: list[float]) -> None:
    """Have logarithmic axes, with these values named on the horizontal one."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30, fontsize="small")
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
