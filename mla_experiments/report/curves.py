"""Loss curves of all runs under a folder: one figure per variant, and one with all.

Dashes and marks differ between mechanisms, so that the figures can be read without colour.
"""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLES = [
    {"color": "#1b1b1b", "linestyle": "-", "marker": "o"},
    {"color": "#0072b2", "linestyle": "--", "marker": "s"},
    {"color": "#d55e00", "linestyle": "-.", "marker": "^"},
    {"color": "#009e73", "linestyle": ":", "marker": "D"},
    {"color": "#cc79a7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
]


def draw_curves(runs: Path, figures: Path) -> list[Path]:
    """Draw the training and validation losses of every run in a folder of runs.

    Args:
        runs: holds one folder per run, each with `metrics.jsonl` and `run.json`.
        figures: where `NAME.png` for each run and `all.png` go.

    Returns:
        The files written.
    """
    curves = {}
    for path in sorted(runs.glob("*/metrics.jsonl")):
        metrics = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        facts = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
        if any("loss" in entry for entry in metrics):
            curves[path.parent.name] = (metrics, facts)
    figures.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (metrics, facts) in curves.items():
        figure, axes = _axes(f"{name.upper()} on {facts['corpus']}")
        _plot(axes, metrics, "loss", label="training", color="0.6", linewidth=1)
        _plot(axes, metrics, "eval_loss", label="validation", color="black", marker="o", markersize=4)
        written.append(_save(figure, axes, figures / f"{name}.png"))
    if curves:
        corpora = sorted({facts["corpus"] for _, facts in curves.values()})
        figure, axes = _axes(f"Validation loss on {', '.join(corpora)}")
        for index, (name, (metrics, _)) in enumerate(curves.items()):
            style = STYLES[index % len(STYLES)]
            _plot(axes, metrics, "loss", color=style["color"], alpha=0.25, linewidth=0.8)
            _plot(axes, metrics, "eval_loss", label=name.upper(), markersize=4, **style)
        axes.plot([], [], color="0.6", linewidth=0.8, label="training (faint)")
        written.append(_save(figure, axes, figures / "all.png"))
    return written


def _axes(title: str):
    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel="tokens trained on", ylabel="cross-entropy (nats per token)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.grid(alpha=0.3)
    return figure, axes


def _plot(axes, metrics: list[dict], key: str, **style) -> None:
    points = [(entry["tokens"], entry[key]) for entry in metrics if key in entry]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _save(figure, axes, path: Path) -> Path:
    axes.legend()
    scratch = path.with_suffix(".partial.png")
    figure.savefig(scratch)
    scratch.replace(path)
    return path
