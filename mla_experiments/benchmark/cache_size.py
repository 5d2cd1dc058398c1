"""The KV cache: bytes of the tensors that a model really keeps, the formulas beside them, and the batch that fits."""

import gc
from dataclasses import dataclass

import torch

from ..allocator import keep_freed_memory
from ..errors import UserError
from ..kernels.stored import ALIGNED, STORED
from ..modeling import DecoderConfig, DecoderForCausalLM
from .decode import cache_bytes, decode_step
from .measure import PeakMemory, flag, in_fresh_process
from .training import MECHANISMS, SHAPE

FIGURE = {"x": "context", "y": "cache MiB", "line": "attention", "panel": None}


@dataclass
class Arguments:
    """Cache size against context, the memory that decoding takes beside it, and the largest batch in a budget."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    contexts: list[int] = flag([512, 2048, 8192, 32768, 65536], "tokens in the cache")
    cache_dtypes: list[str] = flag([], "in which caches are kept: f32, bf16, f16, int8; by default the model's own")
    budget_gib: float = flag(16.0, "memory for weights and caches of a batch")


def measure(given: Arguments) -> list[dict]:
    """Return a row per mechanism and context, each measured in a process of its own."""
    return [
        in_fresh_process(decode_in_memory, attention, context, given.budget_gib, dtype)
        for attention in given.attention
        for dtype in (*given.cache_dtypes,) or (None,)
        for context in given.contexts
    ]


def decode_in_memory(attention: str, context: int, budget_gib: float, cache_dtype: str | None = None) -> dict:
    """Decode a few tokens after a filled cache and return what was held.

    Raises:
        UserError: the cache does not hold what the mechanism's formula says.
    """
    keep_freed_memory()
    torch.zeros(1, 512) @ torch.zeros(512, 512)  # the libraries' own buffers
    before = PeakMemory.now()
    config = DecoderConfig(**SHAPE, attention=attention, max_position_embeddings=context + 8)
    model = DecoderForCausalLM(config).eval()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    step, cache = decode_step(model, 1, context, cache_dtype=cache_dtype)
    held, room = cache_bytes(cache), buffer_bytes(cache)
    gc.collect()
    with PeakMemory() as memory:
        for _ in range(5):
            step()
    elements = sum(layer.self_attn.cache_elements_per_token() for layer in model.model.layers)
    per_token = elements * (STORED[cache_dtype] if cache_dtype else model.dtype).itemsize
    if cache_dtype == "int8":
        per_token += scale_bytes(cache)
    if held != context * per_token:
        raise UserError(f"{attention} caches {held / context} bytes per token, not {per_token} as its formula says")
    return {
        "attention": attention if cache_dtype is None else f"{attention}, cache {cache_dtype}",
        "context": context,
        "bytes/token": held // context,
        "formula": per_token,
        "cache MiB": held / 2**20,
        "with room to grow": room / 2**20,
        "weights MiB": weights / 2**20,
        "beyond both, MiB": (memory.peak - before - weights - held) / 2**20,
        "largest batch": int((budget_gib * 2**30 - weights) // held),
    }


def scale_bytes(cache) -> int:
    """Return the bytes that a token's scales take in a cache of 8 bits."""
    kept = [
        (parts, rows)
        for layer in cache.layers
        for parts, rows in zip(layer.parts, (layer.keys, layer.values), strict=True)
    ]
    return sum(ALIGNED * len(parts) * rows.shape[1] for parts, rows in kept)


def buffer_bytes(cache) -> int:
    """Return the bytes of the buffers behind a cache."""
    parts = (part for layer in cache.layers for part in (layer.keys, layer.values))
    return sum(part.untyped_storage().nbytes() for part in parts)
