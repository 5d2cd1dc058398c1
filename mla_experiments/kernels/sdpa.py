"""Softmax attention through PyTorch's fused `scaled_dot_product_attention`, on its fast path for every mechanism."""

import torch
import torch.nn.functional as F


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Return softmax(scale · query keyᵀ + mask) value.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, G, S, D]`, G key-value heads, each shared by H / G query heads.
        value: `[B, G, S, Dv]`, any width Dv.
        mask: `[B or 1, 1, T, S]`, boolean (True attends) or additive; None means causal when T > 1,
            where T must equal S, and everything when T == 1.
        scale: factor on the scores before the softmax.

    Returns:
        `[B, H, T, Dv]`.
    """
    num_heads, length = query.shape[1:3]
    num_groups = key.shape[1]
    if length == 1 and num_groups < num_heads:
        # One new token: the heads of a group become rows of one query, so its keys are read once, uncopied.
        folded = query.reshape(query.shape[0], num_groups, num_heads // num_groups, query.shape[-1])
        return _attend_equal_width(folded, key, value, mask, scale, causal=False).reshape(
            query.shape[0], num_heads, 1, value.shape[-1]
        )
    if num_groups < num_heads:
        key = key.repeat_interleave(num_heads // num_groups, dim=1)
        value = value.repeat_interleave(num_heads // num_groups, dim=1)
    return _attend_equal_width(query, key, value, mask, scale, causal=mask is None and length > 1)


def _attend_equal_width(query, key, value, mask, scale, *, causal):
    """Pad the values to the keys' width: fused backends silently fall to the slow path when they differ."""
    width = value.shape[-1]
    fused = query.device.type in ("cpu", "cuda")
    if fused and width < key.shape[-1]:
        value = F.pad(value, (0, key.shape[-1] - width))
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return output[..., :width]
