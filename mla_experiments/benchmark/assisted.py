"""Several tokens a step, as assisted decoding checks them: what guesses must come true for it to pay.

Whoever guesses k tokens (a smaller model, a lookup in the prompt) has them checked in one step of k + 1, and gets as
many as were right and one more (Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, arXiv
2211.17192, §2). Guessing itself is not counted: it is the same for all.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..allocator import keep_freed_memory
from .decode import filled_cache, step_from
from .measure import flag, interleaved, spread
from .training import MECHANISMS, contestants

FIGURE = {"x": "guessed", "y": "of a plain step", "line": "model", "panel": "context"}


@dataclass
class Arguments:
    """Milliseconds of a step that checks several guessed tokens, and how many must be right for it to pay."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    contexts: list[int] = flag([2048, 8192, 32768], "tokens in the cache")
    guessed: list[int] = flag([2, 4, 8], "tokens checked beside the one that comes anyway")
    rounds: int = flag(9, "timed turns of each, after two to warm up")


def measure(given: Arguments) -> list[dict]:
    """Return a row per contestant, context and number of guesses; all steps of a context take turns."""
    keep_freed_memory()
    models = contestants(given.attention, max(given.contexts) + max(given.guessed) + 8)
    rows = []
    for context in given.contexts:
        steps: dict[tuple[str, int], Callable] = {}
        for name, model in models.items():
            cache = filled_cache(model, 1, context)
            steps |= {(name, count): step_from(model, cache, 1, 1 + count) for count in (0, *given.guessed)}
        ms = {of: spread(times)["ms"] for of, times in interleaved(steps, given.rounds).items()}
        rows += [row(name, context, count, ms[name, count], ms[name, 0]) for name, count in steps if count]
    return rows


def row(name: str, context: int, guessed: int, ms: float, plain_ms: float) -> dict:
    """Return what a step that checks guesses takes, and what comes of it.

    Args:
        name: of the model.
        context: tokens in the cache.
        guessed: tokens checked.
        ms: milliseconds of the step.
        plain_ms: of a step of one token.
    """
    return {
        "model": name,
        "context": context,
        "guessed": guessed,
        "ms": ms,
        "plain ms": plain_ms,
        "of a plain step": ms / plain_ms,
        "pays from, % right": max(0.0, 100 * (ms / plain_ms - 1) / guessed),
        "tokens/s, a third right": 1e3 * (1 + guessed / 3) / ms,
        "of plain, a third right": (1 + guessed / 3) * plain_ms / ms,
    }
