"""Loss curves are drawn again and again while a run trains: what they leave behind must not grow."""

import gc
import json

from matplotlib.figure import Figure

from mla_experiments.manifest import write_record
from mla_experiments.report.curves import draw_curves


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
