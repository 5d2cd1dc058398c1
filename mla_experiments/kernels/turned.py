"""Attention to keys that are kept as they are and turned by RoPE as they are read (K = V, MFA-KR).

Turned outside, all that is cached would be copied at each step, in some six passes. In C a block of keys is turned in
the first-level cache, once for all queries that read it.
"""

import torch

from . import shared_keys
from .attention import are_few, attend


def attend_turned(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    tables: tuple[torch.Tensor, torch.Tensor],
    interleaved: bool,
    weight: torch.Tensor | None = None,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query RoPE(weight ⊙ key)ᵀ + mask) value, `[B, H, T, Dv]`.

    Args:
        query: `[B, H, T, D]`, turned, half-split.
        key: `[B, G, S, D]`, as they are kept.
        value: `[B, G, S, Dv]`; may be the keys themselves.
        mask: see `attention.attend`.
        scale: see there.
        tables: cosines and sines of the keys' angles, each `[B or 1, S, D / 2]`.
        interleaved: whether a key's pairs are its numbers 2i and 2i + 1, and not i and i + D / 2.
        weight: `[D]`; None for ones.
        attentions: see `attention.attend`.
    """
    if attentions is None and _pays_in_c(query, key, value, mask, tables, weight):
        return shared_keys.attend_turned(query, key, value, mask, scale, tables, interleaved, weight)
    key = turned(key if weight is None else key * weight, tables, interleaved)
    return attend(query, key, value, mask, scale, attentions)


def turned(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], interleaved: bool) -> torch.Tensor:
    """Turn every pair of `x` `[B, H, T, D]` by its angle; cosines and sines are `[B or 1, T, D / 2]`.

    The result is half-split in either layout: queries and keys are permuted alike, so their products are the same.
    """
    cos, sin = (table.unsqueeze(1) for table in tables)  # [B, 1, T, D / 2]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _pays_in_c(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    tables: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor | None,
) -> bool:
    return (
        not torch.compiler.is_compiling()
        and are_few(query, mask)
        and shared_keys.why_not(query, key, value, mask) is None
        and shared_keys.why_not(*tables, tables[0] if weight is None else weight) is None
        and shared_keys.why_not_here() is None
    )
