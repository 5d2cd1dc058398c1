"""Attention over latents by FlashMLA (github.com/deepseek-ai/FlashMLA), DeepSeek's kernels for Hopper and later."""

import flash_mla
import torch

from .paged import page_table, paged


def why_not_here() -> str | None:
    """Return what this machine lacks."""
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if torch.cuda.get_device_capability() < (9, 0):
        return "needs a GPU of compute capability 9.0 (Hopper) or later"
    return None


def pays(query) -> bool:
    """Whether it is meant for such queries."""
    return query.device.type == "cuda"


def why_not(query, latents, value_width, mask) -> str | None:
    """Return what it cannot serve."""
    if (latents.shape[-1], value_width) != (576, 512):
        return f"it knows latents of 512 + 64, not {value_width} + {latents.shape[-1] - value_width}"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"it knows bf16 and f16, not {query.dtype}"
    if mask is not None:
        return "it takes no mask (padded batches, several new tokens)"
    return None


def attend_latents(query, latents, value_width, mask, scale):
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
