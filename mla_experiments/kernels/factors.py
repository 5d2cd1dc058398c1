"""Few queries among keys and values that are sums of products of factors: what TPA decodes with, nothing expanded.

Zhang et al. 2025, Tensor Product Attention, §5, FlashTPA decoding, algorithm 2. With k_h = Σ_r a_r[h] b_r and a query
in the same form, the score of a head is Σ_r a_r[h] (Σ_q a_q[h] (b_q · b_r)): products of the b come first, for all
heads together, and their weights a after them.
"""

import torch

from . import factors_c


def attend_factors(
    query: tuple[torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
    value: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query keyᵀ + mask) value, `[B, H, T, D]`; in PyTorch every score lies in memory, R times.

    Args:
        query: factors a `[B, T, Q, H]` and b `[B, T, Q, D]` of the queries, Q their rank.
        key: factors a `[B, S, R, H]` and b `[B, S, R, D]` of the keys, R their rank.
        value: as `key`.
        mask: `[B or 1, 1, T, S]`, boolean (True attends) or additive; None attends to everything.
        scale: factor on the scores before the softmax.
        attentions: where given, the probabilities `[B, H, T, S]` are appended to it.
    """
    (a_q, b_q), (a_k, b_k), (a_v, b_v) = query, key, value
    if attentions is None and not torch.compiler.is_compiling() and factors_c.why_not(query, key, value, mask) is None:
        return factors_c.attend(a_q.transpose(2, 3) @ b_q, key, value, mask, scale)
    (num_new, rank), (context, num_heads) = a_q.shape[1:3], (a_k.shape[1], a_k.shape[3])
    products = b_k.flatten(1, 2) @ b_q.flatten(1, 2).transpose(1, 2)  # [B, S·R, T·Q]
    products = products.unflatten(2, (num_new, rank)).transpose(1, 2)  # [B, T, S·R, Q]
    of_heads = (products @ (a_q * scale)).unflatten(2, (context, -1))  # [B, T, S, R, H]
    scores = _summed(of_heads, a_k.unsqueeze(1))  # [B, T, S, H]
    if mask is not None:
        mask = mask.squeeze(1).unsqueeze(-1)  # [B or 1, T, S, 1]
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
    exact = torch.promote_types(scores.dtype, torch.float32)
    probabilities = scores.softmax(dim=2, dtype=exact).to(b_v.dtype)  # [B, T, S, H]
    if attentions is not None:
        attentions.append(probabilities.permute(0, 3, 1, 2))
    weights = (probabilities.unsqueeze(3) * a_v.unsqueeze(1)).flatten(2, 3)  # [B, T, S·R, H]
    rows = weights.transpose(2, 3).flatten(1, 2)  # [B, T·H, S·R]
    return (rows @ b_v.flatten(1, 2)).unflatten(1, (num_new, num_heads)).transpose(1, 2)


def _summed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Σ_r x_r ⊙ y_r over the ranks, the last dimension but one: a pass each, and not all products in memory."""
    (first, second), *others = zip(x.unbind(-2), y.unbind(-2), strict=True)
    total = first * second
    for first, second in others:
        total = torch.addcmul(total, first, second)
    return total
