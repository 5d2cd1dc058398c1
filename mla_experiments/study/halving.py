"""Successive halving: the worse half of a mechanism's trials stops early, at the same shares for every mechanism.

Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification, arXiv 1502.07943; Li et al. 2018, Hyperband, arXiv
1603.06560, §3. There a trial of a smaller budget is a training of its own. Here it is the beginning of the whole one,
with the schedule of the whole one: who goes on is resumed from a checkpoint, to the same bits as if nobody had looked.

So a rung compares trials in the middle of their schedule, by the validation loss that training logs there, before the
learning rate has fallen. A high rate looks worse there than it would in the end, under any schedule that falls
(docs/statistics.md has by how much); a late first rung says more of the end and saves less.
"""

import math

from ..errors import UserError
from ..run_files import METRICS_FILE, read_metrics
from ..training.checkpoints import in_order, step_of
from ..training.run import Run


def entrants(trials: int, halvings: int) -> list[int]:
    """Return how many trials each rung trains on: all, half of them (rounded up), half of those ..."""
    return [-(-trials // 2**halving) for halving in range(halvings + 1)]


def steps_at(shares: tuple[float, ...], steps: int, flags: dict) -> list[int]:
    """Return the steps at which shares of a training are compared: of the first validation from each on.

    Args:
        shares: of the steps, rising.
        steps: of the whole training.
        flags: of TrainingArguments.

    Raises:
        UserError: training does not validate between one of them and the next, or the end.
    """
    if not shares:
        return []
    if flags["eval_strategy"] != "steps":
        raise UserError(
            f"tuning.halving compares what training validates under way, which eval_strategy={flags['eval_strategy']} "
            "leaves out; give eval_strategy: steps"
        )
    often = flags["eval_steps"] or flags["logging_steps"]  # as TrainingArguments has it
    every = int(often) if often >= 1 else math.ceil(steps * often)
    begins = flags.get("eval_delay") or 0
    found = [every * math.ceil(round(max(share * steps, begins) / every, 6)) for share in shares]
    for share, step, following in zip(shares, found, [*found[1:], steps], strict=True):
        if step >= following:
            raise UserError(
                f"tuning.halving={list(shares)} would compare at step {step} of {steps}, of the first validation "
                f"from {share:g} of them on, which is not before the next share or the end; give other shares or "
                "smaller eval_steps"
            )
    return found


def standing(run: Run, step: int) -> float | None:
    """Return the validation loss of a run at a step, once a checkpoint from there on makes it stay."""
    stays = run.is_finished or any(step_of(checkpoint) >= step for checkpoint in in_order(run.folder))
    if not stays or not (run.folder / METRICS_FILE).is_file():
        return None
    losses = {line["step"]: line["eval_loss"] for line in read_metrics(run.folder) if "eval_loss" in line}
    return losses.get(step)
