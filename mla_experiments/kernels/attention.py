"""Attention over keys and values: in C where it is the quicker on a CPU, else in PyTorch.

That is where many query heads share one key (MQA), and where few queries read a cache, in whatever bits it keeps.
"""

import torch

from . import eager, sdpa, shared_keys, stored_c
from .stored import Stored, plain

LONG_ENOUGH = 256  # tokens: over fewer, what a call takes is most of it


def attend(
    query: torch.Tensor,
    key: torch.Tensor | Stored,
    value: torch.Tensor | Stored,
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query keyᵀ + mask) value, `[B, H, T, Dv]`.

    Args:
        query: as the other tensors, see `sdpa.attend`.
        key: see there; or as a cache keeps it.
        value: as `key`.
        mask: see there.
        scale: factor on the scores before the softmax.
        attentions: where given, the probabilities `[B, H, T, S]` are appended to it, and attention is not fused.
    """
    if (
        isinstance(key, Stored)
        and isinstance(value, Stored)
        and attentions is None
        and are_few(query, mask)
        and stored_c.why_not(query, key, value, mask) is None
    ):
        return stored_c.attend(query, key, value, value.width, mask, scale)
    key, value = plain(key), plain(value)
    if attentions is not None:
        output, probabilities = eager.attend(query, key, value, mask, scale)
        attentions.append(probabilities)
        return output
    if not torch.compiler.is_compiling() and are_few(query, mask):
        if key.shape[1] == 1 and _fills_vectors(query, key, value, mask):
            return shared_keys.attend(query, key, value, mask, scale)
        if key.shape[2] >= LONG_ENOUGH and _is_read_as_it_lies(query, key, value, mask):
            as_kept = Stored(key, (), torch.float32), Stored(value, (), torch.float32)
            return stored_c.attend(query, *as_kept, value.shape[-1], mask, scale)
    return sdpa.attend(query, key, value, mask, scale)


def are_few(query: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return whether queries `[B, H, T, D]` are of a decoding step or a few, and no prompt, which has no mask."""
    return query.shape[2] == 1 or (mask is not None and query.shape[2] <= sdpa.FEW_TOKENS)


def _fills_vectors(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    num_heads, num_new = query.shape[1:3]
    served = (
        num_heads > 1 and shared_keys.why_not(query, key, value, mask) is None and shared_keys.why_not_here() is None
    )
    return served and shared_keys.fills_lanes(num_heads * num_new)


def _is_read_as_it_lies(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether few queries share a key, and keys and values are of whole vectors, so that they need not be copied."""
    served = (
        key.shape[1] == value.shape[1]
        and shared_keys.why_not(query, key, value, mask) is None
        and shared_keys.why_not_here() is None
        and stored_c.why_not_here() is None
    )
    rows = query.shape[1] // key.shape[1] * query.shape[2]
    return served and not shared_keys.fills_lanes(rows) and stored_c.is_whole(key.shape[-1], value.shape[-1])
