"""The planner against the clock: what `plan --hardware this` expects of a decoding step and its cache, and what is."""

from dataclasses import dataclass
from typing import Any

from ..allocator import keep_freed_memory
from ..modeling import DecoderForCausalLM
from .architectures import ARCHITECTURES
from .costs import cache_elements_per_token
from .decode import cache_bytes, decode_step
from .measure import flag, interleaved, spread
from .parts import measure_parts
from .plan import changed
from .training import MECHANISMS

FIGURE = None


@dataclass
class Arguments:
    """Expected and measured milliseconds of a decoding step of the reference shape."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    contexts: list[int] = flag([4096, 8192, 32768], "tokens in the cache")
    batch_sizes: list[int] = flag([1, 8], "sequences decoded together")
    rounds: int = flag(9, "timed turns, after two to warm up")


def measure(given: Arguments) -> list[dict]:
    """Return a row per mechanism, batch size and context."""
    keep_freed_memory()
    rows = []
    for name in given.attention:
        architecture = changed(ARCHITECTURES["reference"], name, {})
        architecture.config.max_position_embeddings = max(given.contexts) + 8
        model = DecoderForCausalLM(architecture.config)
        for batch in given.batch_sizes:
            parts = measure_parts(architecture.config, batch)
            for context in given.contexts:
                step, cache = decode_step(model, batch, context)
                row: dict[str, Any] = {"attention": name, "batch": batch, "context": context}
                row |= spread(interleaved({"step": step}, given.rounds)["step"])
                weights, layers = architecture.weights_read(batch), architecture.config.num_hidden_layers
                row["ms expected"] = 1e3 * parts.step(weights, layers, context)
                row["measured / expected"] = row["ms"] / row["ms expected"]
                expected = 4 * batch * context * cache_elements_per_token(architecture.config)
                rows.append(row | {"cache MiB": cache_bytes(cache) / 2**20, "expected MiB": expected / 2**20})
    return rows
