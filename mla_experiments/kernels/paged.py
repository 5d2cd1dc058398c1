"""What the serving kernels FlashMLA and FlashInfer have in common: the cache as pages of tokens, and their limits.

Pages are a view where the buffer allows it, and a copy where it does not.
"""

import torch
import torch.nn.functional as F

from .plain import NOT_PLAIN, is_plain

PAGE = 64  # tokens


def paged(latents: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return pages `[P, PAGE, W]` of latents `[B, S, W]`, and how many pages one sequence starts after the one before.

    A growing cache's buffer is whole pages long, so that its filled part is served in place; the tail of a sequence's
    last page is not meant to be read.
    """
    batch, context, width = latents.shape
    per_sequence = -(-context // PAGE)
    page = PAGE * width
    in_place = latents.stride()[1:] == (width, 1) and (batch == 1 or latents.stride(0) % page == 0)
    last = (batch - 1) * latents.stride(0) + per_sequence * page
    if not in_place or last > latents.untyped_storage().nbytes() // latents.element_size() - latents.storage_offset():
        latents = F.pad(latents, (0, 0, 0, per_sequence * PAGE - context))
    apart = latents.stride(0) // page if batch > 1 else per_sequence
    return latents.as_strided(((batch - 1) * apart + per_sequence, PAGE, width), (page, width, 1)), apart


def page_table(batch: int, context: int, apart: int, device: torch.device) -> torch.Tensor:
    """Return the page numbers of each sequence, `[B, ceil(S / PAGE)]`, int32."""
    numbers = torch.arange(-(-context // PAGE), dtype=torch.int32, device=device)
    return apart * torch.arange(batch, dtype=torch.int32, device=device)[:, None] + numbers


def needs_gpu(capability: tuple[int, int], generation: str) -> str | None:
    """Return what this machine lacks of a GPU of a compute capability or later."""
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if torch.cuda.get_device_capability() < capability:
        return f"needs a GPU of compute capability {'.'.join(map(str, capability))} ({generation}) or later"
    return None


def pays(query: torch.Tensor) -> bool:
    """Whether a serving kernel is meant for such queries."""
    return query.device.type == "cuda"


def why_not(query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None) -> str | None:
    """Return what serving kernels cannot serve."""
    if (latents.shape[-1], value_width) != (576, 512):
        return f"it knows latents of 512 + 64, not {value_width} + {latents.shape[-1] - value_width}"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"it knows bf16 and f16, not {query.dtype}"
    if mask is not None:
        return "it takes no mask (padded batches, several new tokens)"
    if not is_plain(query, latents):
        return NOT_PLAIN
    return None
