"""Successive halving: many trials get a small budget of tokens, the better half of them a larger one, one the whole.

Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification, arXiv 1502.07943; Li et al. 2018, Hyperband, arXiv
1603.06560, §3, where a trial of a small budget is a training of its own, as it is here: with a whole schedule on fewer
tokens, its warm-up as much shorter. Stopping the whole training early instead compares trials in the middle of their
schedule, where a high learning rate looks worse than it will (docs/statistics.md has by how much).
"""

import math
from dataclasses import replace

from ..errors import UserError
from ..training import RunArguments
from ..training.arguments import check_least, steps_of


def entrants(trials: int, halvings: int) -> list[int]:
    """Return how many trials have each budget: all, half of them (rounded up), half of those ..."""
    return [-(-trials // 2**halving) for halving in range(halvings + 1)]


def on_part(run: RunArguments, share: float) -> RunArguments:
    """Return a training with a share of the tokens."""
    tokens, warmup = math.ceil(share * run.train_tokens), math.ceil(share * run.warmup_tokens)
    return replace(run, train_tokens=tokens, warmup_tokens=warmup)


def steps_in(run: RunArguments, flags: dict) -> int:
    """Return how many steps a training has."""
    return int(steps_of(run, flags)["max_steps"])


def check_shares(shares: tuple[float, ...], run: RunArguments, flags: dict) -> None:
    """Check that every share of a training has steps of its own.

    Args:
        shares: of its tokens, rising, below 1.
        run: the whole training.
        flags: of TrainingArguments.

    Raises:
        UserError: its length is stated in steps, or a share has as many steps as the next.
    """
    check_least(run)
    if not shares:
        return
    for name, tokens in (("max_steps", "train_tokens"), ("warmup_steps", "warmup_tokens")):
        if flags.get(name, -1) != -1:
            raise UserError(
                f"{name}={flags[name]} is the same for every share of tuning.halving; state {tokens} instead"
            )
    whole, steps = steps_in(run, flags), [steps_in(on_part(run, share), flags) for share in shares]
    for share, here, following in zip(shares, steps, [*steps[1:], whole], strict=True):
        if here >= following:
            raise UserError(
                f"tuning.halving={list(shares)} would train {here} of {whole} steps for a share of {share:g}, as many "
                "as for the next; give other shares, or more train_tokens"
            )
