"""Attention over latents on CPUs in C: absorbed MLA is attention of all heads' queries over one shared key."""

import torch

from . import shared_keys
from .shared_keys import why_not_here

__all__ = ["attend_latents", "pays", "why_not", "why_not_here"]


def pays(query: torch.Tensor) -> bool:
    """Whether it is meant for such queries: on a CPU, enough of them to fill vectors."""
    return query.device.type == "cpu" and shared_keys.fills_lanes(query.shape[1] * query.shape[2])


def why_not(query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None) -> str | None:
    """Return what it cannot serve."""
    if mask is None and query.shape[2] > 1:
        return "it serves cached contexts, not prompts"
    return shared_keys.why_not(query, latents, latents, mask)


def attend_latents(
    query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return `[B, H, T, value_width]`: see `latent.attend_latents`."""
    shared = latents.unsqueeze(1)  # [B, 1, S, W]
    return shared_keys.attend(query, shared, shared[..., :value_width], mask, scale)
