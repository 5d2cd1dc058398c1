"""Attention over keys and values: in C where many query heads share one key on a CPU (MQA), else in PyTorch."""

import torch

from . import eager, sdpa, shared_keys


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query keyᵀ + mask) value, `[B, H, T, Dv]`.

    Args:
        query: as the other tensors, see `sdpa.attend`.
        key: see there.
        value: see there.
        mask: see there.
        scale: factor on the scores before the softmax.
        attentions: where given, the probabilities `[B, H, T, S]` are appended to it, and attention is not fused.
    """
    if attentions is not None:
        output, probabilities = eager.attend(query, key, value, mask, scale)
        attentions.append(probabilities)
        return output
    if not torch.compiler.is_compiling() and key.shape[1] == 1 and _pays_in_c(query, key, value, mask):
        return shared_keys.attend(query, key, value, mask, scale)
    return sdpa.attend(query, key, value, mask, scale)


def _pays_in_c(query, key, value, mask) -> bool:
    num_heads, num_new = query.shape[1:3]
    decoding = num_heads > 1 and (num_new == 1 or (mask is not None and num_new <= sdpa.FEW_TOKENS))
    served = decoding and shared_keys.why_not(query, key, value, mask) is None and shared_keys.why_not_here() is None
    return served and shared_keys.fills_lanes(num_heads * num_new)
