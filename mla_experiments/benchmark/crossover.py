"""Where MLA should stop attending in the latent space and expand: measured, beside what the cost model says.

The model (`modeling.attention.absorb.is_cheaper_absorbed`) counts multiply-adds. What counts is not where the two
curves cross, where they cost the same, but what the choice of the model costs beside the better one.
"""

from dataclasses import dataclass

import torch

from ..allocator import keep_freed_memory
from ..kernels import attend
from ..modeling.attention import MLA
from .core import SHAPES, absorb, inputs, layer
from .measure import flag, interleaved, spread

FIGURE = {"x": "new tokens", "y": "absorb / expand", "line": "context", "panel": "shape"}


@dataclass
class Arguments:
    """Absorbed against expanded attention, for several new tokens in a step."""

    shapes: list[str] = flag(list(SHAPES), "see `bench core --help`")
    contexts: list[int] = flag([64, 1024, 8192], "tokens, the new included")
    new_tokens: list[int] = flag([1, 4, 16, 32, 48, 64, 96, 128, 192, 256], "tokens of a step")
    rounds: int = flag(9, "timed turns of each, after two to warm up")


@torch.inference_mode()
def measure(given: Arguments) -> list[dict]:
    """Return a row per shape, context and number of new tokens."""
    keep_freed_memory()
    return [
        compare(layer(shape), shape, num_new, context, given.rounds)
        for shape in given.shapes
        for context in given.contexts
        for num_new in given.new_tokens
        if num_new < context
    ]


def compare(mla: MLA, shape: str, num_new: int, context: int, rounds: int) -> dict:
    """Time both ways for one step and say which one the layer takes."""
    query, latents = inputs(mla, 1, num_new, context)
    mask = torch.ones(num_new, context, dtype=torch.bool).tril(context - num_new)[None, None] if num_new > 1 else None
    ways = {
        "absorb": lambda: absorb(mla, query, latents, mask),
        "expand": lambda: attend(query, *mla.expand(latents.unsqueeze(1)), mask, mla.scale),
    }
    ms = {way: spread(times)["ms"] for way, times in interleaved(ways, rounds).items()}
    chosen = "absorb" if mla.absorbs(num_new, context) else "expand"
    return {
        "shape": shape,
        "context": context,
        "new tokens": num_new,
        "absorb, ms": ms["absorb"],
        "expand, ms": ms["expand"],
        "absorb / expand": ms["absorb"] / ms["expand"],
        "auto takes": chosen,
        "slower than the better by, %": 100 * (ms[chosen] / min(ms.values()) - 1),
    }
