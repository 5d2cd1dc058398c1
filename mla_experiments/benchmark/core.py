"""The core of MLA's decoding alone: fold, scores, softmax, sum, unfold, at the reference shape and at DeepSeek-V2's.

Its ceiling is the slower of two: its matrix products at the machine's best rate, and one reading of the latents.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..allocator import keep_freed_memory
from ..errors import UserError
from ..kernels import latent
from ..modeling.attention import MLA
from ..modeling.attention.absorb import absorbed
from .measure import ceilings, flag, interleaved, roofline, spread

FIGURE = None
# one layer each: the reference shape, and 16 heads of DeepSeek-V2's own widths
SHAPES: dict[str, dict[str, Any]] = {
    "A": {"hidden_size": 512, "num_attention_heads": 16},
    "B": {"hidden_size": 2048, "num_attention_heads": 16},
}


@dataclass
class Arguments:
    """MLA's decoding core against the machine's rates."""

    shapes: list[str] = flag(list(SHAPES), "A: d_c 128, d_R 16, d_h 32; B: d_c 512, d_R 64, d_h 128")
    contexts: list[int] = flag([2048, 8192, 32768], "tokens in the cache")
    batch_sizes: list[int] = flag([1, 8], "sequences decoded together")
    backend: str | None = flag(None, "of MLA's decoding (`mla-experiments kernels`)")
    rounds: int = flag(30, "timed turns, after two to warm up")


@torch.inference_mode()
def measure(given: Arguments) -> list[dict]:
    """Return a row per shape, batch size and context."""
    keep_freed_memory()
    latent.force_backend(given.backend)
    ceiling, rows = ceilings(), []
    for shape in given.shapes:
        mla = layer(shape)
        for batch in given.batch_sizes:
            for context in given.contexts:
                query, latents = inputs(mla, batch, 1, context)
                seconds = interleaved({"core": partial(absorb, mla, query, latents, None)}, given.rounds)["core"]
                row: dict[str, Any] = {"shape": shape, "batch": batch, "context": context, **spread(seconds)}
                row |= roofline(row["ms"] / 1e3, batch * flops(mla, 1, context), latents.nbytes, ceiling)
                row["% of ceiling"] = max(row["% of matmul"], row["% of bandwidth"])
                rows.append(row)
    return rows


def layer(shape: str) -> MLA:
    """Return one attention layer of a shape; raises `UserError` for a shape that is not there."""
    if shape not in SHAPES:
        raise UserError(f"shape={shape} is unknown; choose one of {', '.join(SHAPES)}")
    options = MLA.resolve(**SHAPES[shape])
    return MLA(**SHAPES[shape], **options).eval()


def inputs(mla: MLA, batch: int, num_new: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random queries `[B, H, T, d_nope + d_R]` and latents `[B, S, d_c + d_R]`."""
    query = torch.randn(batch, mla.num_heads, num_new, mla.qk_head_dim)
    return query, torch.randn(batch, context, mla.cache_elements_per_token())


def absorb(mla: MLA, query: torch.Tensor, latents: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attend in the latent space."""
    return absorbed(query, latents, *mla.up_projections(), mask, mla.scale)


def flops(mla: MLA, num_new: int, context: int) -> int:
    """Return the floating-point operations of absorbed attention for one sequence."""
    return num_new * (mla.decoding_flops(context) - mla.flops(1, 0))
