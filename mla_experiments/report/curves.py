"""Loss curves of all runs under a folder: one figure per variant, and one with all.

Dashes and marks differ between mechanisms, so that the figures can be read without colour.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path

from ..run_files import METRICS_FILE, read_metrics, read_run
from .figures import STYLES, new_figure, plain, save


def draw_curves(runs: Path, figures: Path) -> list[Path]:
    """Draw the training and validation losses of every run in a folder of runs.

    Args:
        runs: holds one folder per run, each with `metrics.jsonl` and `run.json`.
        figures: where `NAME.png` for each run and `all.png` go.

    Returns:
        The files written.
    """
    gc.collect()  # the figures of the time before refer to themselves, and nothing collects them between steps
    curves = {}
    for path in sorted(runs.glob(f"*/{METRICS_FILE}")):
        metrics, facts = read_metrics(path.parent), read_run(path.parent)
        if facts and any("loss" in entry for entry in metrics):
            curves[path.parent.name] = (metrics, facts)
    figures.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (metrics, facts) in curves.items():
        figure, axes = _axes(plain(f"{name.upper()} on {facts['corpus']}"))
        _plot(axes, metrics, "loss", label="training", color="0.6", linewidth=1)
        _plot(axes, metrics, "eval_loss", label="validation", color="black", marker="o", markersize=4)
        axes.legend()
        written.append(save(figure, figures / f"{name}.png"))
    if curves:
        corpora = sorted({facts["corpus"] for _, facts in curves.values()})
        figure, axes = _axes(plain(f"Validation loss on {', '.join(corpora)}"))
        for index, (name, (metrics, _)) in enumerate(curves.items()):
            style = STYLES[index % len(STYLES)]
            _plot(axes, metrics, "loss", color=style["color"], alpha=0.25, linewidth=0.8)
            _plot(axes, metrics, "eval_loss", label=plain(name.upper()), markersize=4, **style)
        axes.plot([], [], color="0.6", linewidth=0.8, label="training (faint)")
        axes.legend()
        written.append(save(figure, figures / "all.png"))
    return written


class Redrawing:
    """Draws the curves while a run trains, and lets time pass between drawings: each takes as long as many small steps.

    Args:
        draw: given a folder of runs, draws their curves.
        seconds: between two drawings, at least.
    """

    def __init__(self, draw: Callable[[Path], object], seconds: float = 30):
        self.draw, self.seconds, self.drawn = draw, seconds, float("-inf")

    def __call__(self, runs: Path) -> None:
        """Draw the runs of a folder, unless that was done just now."""
        if time.monotonic() - self.drawn >= self.seconds:
            self.draw(runs)
            self.drawn = time.monotonic()


def _axes(title: str):
    figure = new_figure()
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="tokens trained on", ylabel="cross-entropy (nats per token)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.grid(alpha=0.3)
    return figure, axes


def _plot(axes, metrics: list[dict], key: str, **style) -> None:
    points = [(entry["tokens"], entry[key]) for entry in metrics if key in entry]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
