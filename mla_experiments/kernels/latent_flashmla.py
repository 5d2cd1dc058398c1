"""Attention over latents by FlashMLA (github.com/deepseek-ai/FlashMLA), DeepSeek's kernels for Hopper and later."""

import flash_mla
import torch

from .paged import needs_gpu, page_table, paged, pays, why_not

__all__ = ["attend_latents", "pays", "why_not", "why_not_here"]


def why_not_here() -> str | None:
    """Return what this machine lacks."""
    return needs_gpu((9, 0), "Hopper")


def attend_latents(
    query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return `[B, H, T, value_width]`: see `latent.attend_latents`."""
    batch, num_heads, num_new, _ = query.shape
    pages, apart = paged(latents)
    table = page_table(batch, latents.shape[1], apart, latents.device)
    lengths = torch.full((batch,), latents.shape[1], dtype=torch.int32, device=latents.device)
    schedule, splits = flash_mla.get_mla_metadata(lengths, num_new * num_heads, 1)
    output, _ = flash_mla.flash_mla_with_kvcache(
        query.transpose(1, 2).contiguous(), pages.unsqueeze(2), table, lengths, value_width, schedule, splits,
        softmax_scale=scale, causal=num_new > 1,
    )  # fmt: skip
    return output.transpose(1, 2)
