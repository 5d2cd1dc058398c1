"""The inference study: time to generate, against the length of the prompt and against the number of new tokens.

Every model generates greedily, through transformers' own `generate()`, with its cache and without.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..allocator import keep_freed_memory
from .measure import flag, interleaved, spread
from .training import MECHANISMS, contestants

FIGURE = {"x": "tokens", "y": "s", "line": "model", "panel": "study"}


@dataclass
class Arguments:
    """Seconds to generate, with cache and without, ours and transformers'."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    prompts: list[int] = flag([100, 500, 1000, 2000], "lengths of the prompt, for 100 new tokens")
    new_tokens: list[int] = flag([50, 100, 200, 400], "numbers of new tokens, after a prompt of 100")
    without_cache: bool = flag(True, "also without cache, ours alone: every step runs the whole sequence again")
    rounds: int = flag(3, "timed turns of each contestant, after one to warm up")


def measure(given: Arguments) -> list[dict]:
    """Return a row per contestant and length; without a cache a single turn is timed, it is long enough."""
    keep_freed_memory()
    models = contestants(given.attention, max(given.prompts) + max(given.new_tokens) + 100)
    studies = {
        "100 new tokens, against prompt": [(length, length, 100) for length in given.prompts],
        "prompt of 100, against new tokens": [(number, 100, number) for number in given.new_tokens],
    }
    rows = []
    for study, lengths in studies.items():
        for tokens, prompt, new in lengths:
            cached = {f"{name}, cache": generating(model, prompt, new, True) for name, model in models.items()}
            seconds = interleaved(cached, given.rounds, warmup=1)
            if given.without_cache:
                ours = {name: model for name, model in models.items() if name.endswith("ours")}
                bare = {f"{name}, none": generating(model, prompt, new, False) for name, model in ours.items()}
                seconds |= interleaved(bare, rounds=1, warmup=0)
            for name, times in seconds.items():
                ms = spread(times)
                row: dict[str, Any] = {"study": study, "model": name, "tokens": tokens, "s": ms["ms"] / 1e3}
                rows.append(row | {"from": ms["from"] / 1e3, "to": ms["to"] / 1e3, "new tokens/s": new / row["s"]})
    return rows


def generating(model: Any, prompt: int, new: int, use_cache: bool) -> Callable[[], None]:
    """Return a function that generates `new` tokens after a prompt of random ones."""
    tokens = torch.randint(3, model.config.vocab_size, (1, prompt))
    model.eval()

    def run() -> None:
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, use_cache=use_cache, min_new_tokens=new,
            max_new_tokens=new, pad_token_id=0,
        )  # fmt: skip

    return run
