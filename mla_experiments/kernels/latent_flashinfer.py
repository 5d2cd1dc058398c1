"""Attention over latents by FlashInfer (docs.flashinfer.ai/api/mla.html), for NVIDIA GPUs from Ampere on."""

from functools import cache, lru_cache

import flashinfer.mla
import torch

from .paged import PAGE, needs_gpu, page_table, paged, pays, why_not

__all__ = ["attend_latents", "pays", "why_not", "why_not_here"]

WORKSPACE = 128 << 20  # bytes, what FlashInfer's documentation asks for


def why_not_here() -> str | None:
    """Return what this machine lacks."""
    return needs_gpu((8, 0), "Ampere")


def attend_latents(
    query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return `[B, H, T, value_width]`: see `latent.attend_latents`."""
    batch, num_heads, num_new, width = query.shape
    pages, apart = paged(latents)
    wrapper = _planned(batch, num_heads, num_new, latents.shape[1], apart, value_width, width - value_width, scale,
                       query.dtype, query.device)  # fmt: skip
    rows = query.transpose(1, 2).reshape(batch * num_new, num_heads, width)
    output = wrapper.run(
        rows[..., :value_width], rows[..., value_width:], pages[..., :value_width], pages[..., value_width:]
    )
    return output.view(batch, num_new, num_heads, value_width).transpose(1, 2)


@lru_cache(maxsize=1)  # the layers of one step share a plan, and no other step has the same
def _planned(
    batch: int, num_heads: int, num_new: int, context: int, apart: int, rank: int, rotary: int, scale: float,
    dtype: torch.dtype, device: torch.device,
) -> flashinfer.mla.BatchMLAPagedAttentionWrapper:  # fmt: skip
    """Return a wrapper that has planned which processor reads which pages."""
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(_workspace(device))
    numbers = page_table(batch, context, apart, device)
    sequences = torch.arange(batch + 1, dtype=torch.int32, device=device)
    wrapper.plan(
        qo_indptr=sequences * num_new,
        kv_indptr=sequences * numbers.shape[1],
        kv_indices=numbers.flatten(),
        kv_len_arr=torch.full((batch,), context, dtype=torch.int32, device=device),
        num_heads=num_heads,
        head_dim_ckv=rank,
        head_dim_kpe=rotary,
        page_size=PAGE,
        causal=num_new > 1,
        sm_scale=scale,
        q_data_type=dtype,
        kv_data_type=dtype,
    )
    return wrapper


@cache
def _workspace(device: torch.device) -> torch.Tensor:
    return torch.empty(WORKSPACE, dtype=torch.int8, device=device)
