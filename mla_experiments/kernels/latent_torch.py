"""Attention over latents in PyTorch, on any device: absorbed MLA is MQA whose key is its value too.

All heads read the same d_c + d_R numbers a token, and the first d_c of what comes out are the answer. Attending with
the last d_R as values too is d_R / d_c more work than needed, but fused attention wants equal widths, and slicing or
padding the cache would copy it.
"""

import torch

from . import sdpa


def why_not_here() -> None:
    """Every machine can run it."""


def pays(query: torch.Tensor) -> bool:
    """Whether it is meant for such queries: it is the last resort for all."""
    return True


def why_not(query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None) -> None:
    """It serves everything."""


def attend_latents(
    query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return `[B, H, T, value_width]`: see `latent.attend_latents`."""
    shared = latents.unsqueeze(1)  # [B, 1, S, W]
    return sdpa.attend(query, shared, shared, mask, scale)[..., :value_width]
