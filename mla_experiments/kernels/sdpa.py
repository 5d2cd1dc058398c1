"""Softmax attention through PyTorch's fused `scaled_dot_product_attention`, on its fast path for every mechanism.

The fused path works through keys and values block by block, so that scores never sit in memory whole, whatever the
context (Dao et al. 2022, FlashAttention).
"""

import torch
import torch.nn.functional as F

from .plain import is_plain

# New tokens up to which the heads that share a key are rows of one query, and not heads over repeated keys: more rows
# bring no more speed, but a larger mask.
FEW_TOKENS = 16
# Fused attention on a CPU gives a thread its own heads; from this context on, idle threads are worth a split.
LONG_CONTEXT = 4096


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
    causal = mask is None
    if num_new == 1:  # a branch: compiled for any length, the comparison itself would be a symbol
        causal = False
    if shared == 1:
        return _fused(query, key, value, mask, scale, causal)
    if not causal and num_new <= FEW_TOKENS:
        if mask is not None and num_new > 1:
            mask = mask.expand(-1, shared, -1, -1).flatten(1, 2).unsqueeze(1)  # [B or 1, 1, H/G·T, S]
        rows = query.unflatten(1, (-1, shared)).flatten(2, 3)  # [B, G, H/G·T, D]: a key is read once for all
        attended = _few_rows(rows, key, value, mask, scale)
        return attended.unflatten(2, (shared, num_new)).flatten(1, 2)
    return _fused(query, _repeated(key, shared), _repeated(value, shared), mask, scale, causal)


def _few_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """One block of rows for each key-value head; on a CPU it shares out a long context where heads are too few."""
    served = mask is None and value.shape[-1] <= key.shape[-1] and query.device.type == "cpu"
    if served and not torch.is_grad_enabled() and is_plain(query, key, value):
        heads, threads = query.shape[0] * query.shape[1], torch.get_num_threads()
        if heads < threads and key.shape[2] >= LONG_CONTEXT and 1 in query.shape[:2]:
            return _split_context(query, key, value, scale, threads // heads)
    return _fused(query, key, value, mask, scale, False)


def _split_context(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, parts: int
) -> torch.Tensor:
    """Attend to parts of the context side by side and weigh their answers (Dao et al. 2023, Flash-Decoding).

    With softmax over each part alone, part i has the share exp(lse_i) / Σ exp(lse_j) of the whole; lse is the
    logarithm of the sum of its exponentials. Shapes as in `attend`; batch or heads are 1.
    """
    batch, length = query.shape[0], key.shape[2] // parts
    query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # [X, R, D], [X, S, D]
    keys, values = (part[:, : parts * length].unflatten(1, (parts, length)) for part in (key, value))
    outputs = [_fused_with_sums(query.unsqueeze(1).expand(-1, parts, -1, -1), keys, values, scale)]  # [X, parts, R, D]
    if parts * length < key.shape[1]:
        keys, values = (part[:, None, parts * length :] for part in (key, value))
        outputs.append(_fused_with_sums(query.unsqueeze(1), keys, values, scale))
    output, sums = (torch.cat(both, dim=1) for both in zip(*outputs, strict=True))  # [X, parts, R, D], [X, parts, R]
    shares = sums.softmax(dim=1).to(output.dtype).unsqueeze(-1)
    return (output * shares).sum(dim=1).unflatten(0, (batch, -1))


def _fused_with_sums(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fused attention of CPUs, which also returns the logarithms of its sums of exponentials."""
    width = value.shape[-1]
    if width < key.shape[-1]:
        value = F.pad(value, (0, key.shape[-1] - width))
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    return output[..., :width], sums


def _repeated(key: torch.Tensor, shared: int) -> torch.Tensor:
    """`[B, G, S, D]` to `[B, G·shared, S, D]`; a view where G is 1."""
    return key.unsqueeze(2).expand(-1, -1, shared, -1, -1).flatten(1, 2)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: bool
) -> torch.Tensor:
    """Pad values or keys to one width: fused backends silently fall to the slow path when they differ.

    Keys are padded for a prompt alone: for a step it would be a copy of all that is cached.
    """
    width, is_fused = value.shape[-1], query.device.type in ("cpu", "cuda")
    if width < key.shape[-1] and is_fused:
        value = F.pad(value, (0, key.shape[-1] - width))
    elif width > key.shape[-1] and is_fused and causal:
        query, key = (F.pad(x, (0, width - x.shape[-1])) for x in (query, key))
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return output[..., :width]
