"""Train decoders with different attention, one after another, on the packed tokens."""

import os
from pathlib import Path

from ..errors import UserError
from ..next_step import Step
from ..stopping import say_how_to_stop
from .parsing import parse
from .saying import wrote

EXAMPLES = """examples:
  mla-experiments train                                    MHA, MQA and MLA, on the data in data/
  mla-experiments train --attention gqa mla --run second   others, under weights/second
  mla-experiments train --resume                           go on where a run was stopped
  mla-experiments train --attention mla --attention_options '{"mla": {"kv_lora_rank": 64}}' --run rank64"""
NEEDS = {"accelerate": "transformers' Trainer needs it"}


def run(argv: list[str]) -> None:
    """Run it."""
    from transformers import TrainingArguments
    from transformers.utils import logging

    from ..manifest import is_inside
    from ..report import Redrawing, draw_curves, write_model_card
    from ..training import PRESETS, RunArguments, train, trainer_defaults
    from ..training.settings import preset_name

    speaks = int(os.environ.get("RANK", 0)) == 0  # of several processes one speaks for all
    classes = [RunArguments, TrainingArguments]
    first, _ = parse(classes, argv, "train", __doc__, trainer_defaults(), examples=EXAMPLES)
    preset = preset_name(first["preset"])
    if first["preset"] == "auto":
        print(f"No --preset given: taking {preset}; --preset reference or --preset demo chooses.")
    defaults = trainer_defaults() | PRESETS[preset]
    run_values, trainer_flags = parse(classes, argv, "train", __doc__, defaults)
    arguments = RunArguments(**run_values)
    if not is_inside(arguments.run):
        raise UserError(f"run={arguments.run} must be a name, which stays inside of weights_dir and figures_dir")
    logging.disable_progress_bar()  # one bar at a time: the run's own
    if speaks:
        say_how_to_stop()
    runs = Path(arguments.weights_dir) / arguments.run
    figures = Path(arguments.figures_dir) / arguments.run
    check_figures(figures, arguments.attention)
    folders = train(arguments, trainer_flags, Redrawing(lambda folder: draw_curves(folder, figures)))
    if not speaks:
        return
    draw_curves(runs, figures)
    for folder in folders:
        write_model_card(folder)
    there = {"data_dir": arguments.data_dir, "weights_dir": arguments.weights_dir}
    wrote(", ".join(map(str, folders)), f"curves in {figures}", Step("eval_model.py", "eval").with_folders(**there))


def check_figures(folder: Path, attention: list[str]) -> None:
    """Refuse a folder of figures that cannot be written, or where curves would replace what is none of ours.

    Raises:
        UserError: it is one.
    """
    from ..manifest import check_folder
    from ..modeling.attention import find
    from ..report.figures import is_ours

    check_folder(folder, "figures_dir")
    for name in (*map(find, attention), "all"):
        if (path := folder / f"{name}.png").exists() and not is_ours(path):
            raise UserError(f"{path} was not drawn by this command, and is kept; move it away, or give --figures_dir")
