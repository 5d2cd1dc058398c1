"""Loss curves are drawn again and again while a run trains: what they leave behind must not grow."""

import gc
import json

from matplotlib.figure import Figure

from mla_experiments.manifest import write_record
from mla_experiments.report.curves import Redrawing, draw_curves


def figures_alive():
    return sum(isinstance(thing, Figure) for thing in gc.get_objects())


def test_figures_of_earlier_validations_are_not_kept(tmp_path):
    run = tmp_path / "runs/mla"
    run.mkdir(parents=True)
    write_record(run / "run.json", {"corpus": "text"})
    entries = [{"step": 1, "tokens": 128, "loss": 5.0}, {"step": 1, "tokens": 128, "eval_loss": 5.1}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    gc.collect()
    before = figures_alive()
    gc.disable()  # as between the steps of training, which make no garbage that would start it
    try:
        for _ in range(4):
            written = draw_curves(tmp_path / "runs", tmp_path / "figures")
        kept = figures_alive() - before
    finally:
        gc.enable()
    assert [path.name for path in written] == ["mla.png", "all.png"] and kept <= 2


def test_curves_are_drawn_at_once_and_then_when_time_has_passed(tmp_path, monkeypatch):
    now, drawn = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    redraw = Redrawing(lambda folder: drawn.append((folder, now[0])), seconds=30)
    for seconds in (0, 29, 1, 5):
        now[0] += seconds
        redraw(tmp_path)
    assert drawn == [(tmp_path, 100.0), (tmp_path, 130.0)]
