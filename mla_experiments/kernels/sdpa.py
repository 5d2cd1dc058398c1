"""Softmax attention through PyTorch's fused `scaled_dot_product_attention`, on its fast path for every mechanism.

The fused path works through keys and values block by block, so that scores never sit in memory whole, whatever the
context (Dao et al. 2022, FlashAttention).
"""

import torch
import torch.nn.functional as F

# New tokens up to which the heads that share a key are rows of one query, and not heads over repeated keys: more rows
# bring no more speed, but a larger mask.
FEW_TOKENS = 16


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
    num_new = query.shape[2]
    shared = query.shape[1] // key.shape[1]
    causal = mask is None and num_new > 1
    if shared == 1:
        return _fused(query, key, value, mask, scale, causal)
    if num_new <= FEW_TOKENS and not causal:
        if mask is not None and num_new > 1:
            mask = mask.expand(-1, shared, -1, -1).flatten(1, 2).unsqueeze(1)  # [B or 1, 1, H/G·T, S]
        rows = query.unflatten(1, (-1, shared)).flatten(2, 3)  # [B, G, H/G·T, D]: a key is read once for all
        return _fused(rows, key, value, mask, scale, False).unflatten(2, (shared, num_new)).flatten(1, 2)
    return _fused(query, _repeated(key, shared), _repeated(value, shared), mask, scale, causal)


def _repeated(key, shared):
    """`[B, G, S, D]` to `[B, G·shared, S, D]`; a view where G is 1."""
    return key.unsqueeze(2).expand(-1, -1, shared, -1, -1).flatten(1, 2)


def _fused(query, key, value, mask, scale, causal):
    """Pad the values to the keys' width: fused backends silently fall to the slow path when they differ."""
    width = value.shape[-1]
    if width < key.shape[-1] and query.device.type in ("cpu", "cuda"):
        value = F.pad(value, (0, key.shape[-1] - width))
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return output[..., :width]
