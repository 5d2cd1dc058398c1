"""What happens beside the training steps: progress, metrics, curves, and stopping in good order."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import TrainerCallback

from ..stopping import ignores_ctrl_c, say_stopping


class Bar(tqdm):
    """A bar that does not mind when nobody reads it any more, as after Ctrl-C in `train_model.py 2>&1 | tee log`."""

    def display(self, *args, **kwargs):
        """Show it, where that can be: a run does not end for its bar."""
        with contextlib.suppress(OSError):
            super().display(*args, **kwargs)

    def close(self):
        """Leave it as it stands."""
        with contextlib.suppress(OSError):
            super().close()


class Progress(TrainerCallback):
    """A bar counted in tokens: loss, tokens per second, time left."""

    def __init__(self, name: str, tokens_per_step: int):
        self.name, self.tokens_per_step = name, tokens_per_step
        self.losses: dict[str, str] = {}
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar where a resumed run left it."""
        self.bar = Bar(
            desc=self.name,
            total=state.max_steps * self.tokens_per_step,
            initial=state.global_step * self.tokens_per_step,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # logs are read later
            unit=" tokens",
            unit_scale=True,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        """Count the step's tokens."""
        self.bar.update(self.tokens_per_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the newest losses."""
        names = {"loss": "loss", "eval_loss": "validation"}
        self.losses |= {names[key]: f"{value:.3f}" for key, value in logs.items() if key in names}
        self.bar.set_postfix(self.losses)

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the bar as it stands."""
        self.close()

    def close(self):
        """Leave the bar, so that what is said next has a line of its own."""
        if self.bar:
            self.bar.close()


class Metrics(TrainerCallback):
    """Keeps every logged value as a line of JSON, and has the curves redrawn at every validation."""

    def __init__(self, path: Path, tokens_per_step: int, draw: Callable[[], None]):
        self.path, self.tokens_per_step, self.draw = path, tokens_per_step, draw

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin the file with what the checkpoint remembers: nothing for a new run."""
        if state.is_world_process_zero:
            self.path.write_text("".join(self.line(entry) for entry in state.log_history), encoding="utf-8")

    def on_log(self, args, state, control, **kwargs):
        """Append the newest entry; the Trainer's summary at the end is none of a step."""
        if state.is_world_process_zero and "train_runtime" not in state.log_history[-1]:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.line(state.log_history[-1]))

    def on_evaluate(self, args, state, control, **kwargs):
        """Redraw."""
        if state.is_world_process_zero:
            self.draw()

    def line(self, entry: dict) -> str:
        """One entry of the Trainer's log with its tokens, as a line."""
        timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch")
        kept = {name: entry[name] for name in sorted(entry) if name not in timing}  # sorted as checkpoints keep them
        return json.dumps({"step": entry["step"], "tokens": entry["step"] * self.tokens_per_step} | kept) + "\n"


class RestoreLoss(TrainerCallback):
    """On resuming, lets the Trainer go on with the loss that it had summed up since its last line of the log."""

    def __init__(self, trainer, checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        """Restore it; the Trainer has just set it to zero."""
        self.trainer.restore_loss_since_log(self.checkpoint)


class Clock(TrainerCallback):
    """Measures the seconds spent in training steps, validation and saving left out."""

    def __init__(self):
        self.seconds, self.steps, self.begun = 0.0, 0, None

    def on_step_begin(self, args, state, control, **kwargs):
        """A step begins."""
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """The first step warms up and is not counted."""
        if state.global_step > 1:
            self.seconds += time.perf_counter() - self.begun
            self.steps += 1


class StopAskedFor(Exception):  # noqa: N818 - not an error
    """The user asked to stop while a validation ran; a checkpoint is saved."""


class StopInGoodOrder(TrainerCallback):
    """On Ctrl-C or SIGTERM: leave the step, save a checkpoint, stop. A second Ctrl-C ends at once.

    Ctrl-C is left ignored where it is: it is meant for another process.
    """

    def __init__(self):
        self.asked = False
        self.previous: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Listen, where this is the main thread (a notebook's is)."""
        for number in (signal.SIGTERM,) if ignores_ctrl_c() else (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self.ask)
            except ValueError:
                return

    def ask(self, number, frame):
        """Remember the wish, and let the next Ctrl-C end the process at once.

        SIGTERM often comes twice: from the system to all processes, and from one of them to its children.
        """
        first, self.asked = not self.asked, True
        self.restore([signal.SIGINT])  # before anything is said: the next signal may follow at once
        if first:
            say_stopping("a checkpoint is being saved")

    def restore(self, numbers=(signal.SIGINT, signal.SIGTERM)):
        """Put the handlers back that were there before."""
        for number in numbers:
            if number in self.previous:
                signal.signal(number, self.previous.pop(number))

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop if any process was asked to."""
        if any(gather_object([self.asked])):
            control.should_save = control.should_training_stop = True
        return control

    def on_substep_end(self, args, state, control, **kwargs):
        """Leave a step of many micro-batches, which may take long, as if it had not begun: a resumed run begins it."""
        if self.asked and args.world_size == 1:
            control.should_save = control.should_training_stop = True
        return control

    def on_prediction_step(self, args, state, control, **kwargs):
        """Leave a validation, which may take long; several processes finish it, for they could not agree on where."""
        if self.asked and args.world_size == 1:
            raise StopAskedFor
