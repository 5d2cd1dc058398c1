"""Attention over keys and values: in C where it is the quicker on a CPU, else in PyTorch.

That is where many query heads share one key (MQA), and where few queries read what a cache keeps in fewer bits.
"""

import torch

from . import eager, sdpa, shared_keys, stored_c
from .stored import Stored, plain


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
    if not torch.compiler.is_compiling() and key.shape[1] == 1 and _pays_in_c(query, key, value, mask):
        return shared_keys.attend(query, key, value, mask, scale)
    return sdpa.attend(query, key, value, mask, scale)


def are_few(query: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return whether queries `[B, H, T, D]` are of a decoding step or a few, and no prompt, which has no mask."""
    return query.shape[2] == 1 or (mask is not None and query.shape[2] <= sdpa.FEW_TOKENS)


def _pays_in_c(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    num_heads, num_new = query.shape[1:3]
    served = (
        num_heads > 1
        and are_few(query, mask)
        and shared_keys.why_not(query, key, value, mask) is None
        and shared_keys.why_not_here() is None
    )
    return served and shared_keys.fills_lanes(num_heads * num_new)
