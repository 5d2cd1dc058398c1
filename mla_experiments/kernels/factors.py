"""One query among keys and values that are sums of products of factors: what TPA decodes with, nothing expanded.

Zhang et al. 2025, Tensor Product Attention, §5, FlashTPA decoding, algorithm 2. With k_h = Σ_r a_r[h] b_r and a query
in the same form, the score of a head is Σ_r a_r[h] (Σ_q a_q[h] (b_q · b_r)): products of the b come first, for all
heads together, and their weights a after them.
"""

import torch


def attend_factors(
    query: tuple[torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
    value: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query keyᵀ + mask) value of one new token, `[B, H, 1, D]`.

    Args:
        query: factors a `[B, 1, Q, H]` and b `[B, 1, Q, D]` of the query, Q its rank.
        key: factors a `[B, S, R, H]` and b `[B, S, R, D]` of the keys, R their rank.
        value: as `key`.
        mask: `[B or 1, 1, 1, S]`, boolean (True attends) or additive; None attends to everything.
        scale: factor on the scores before the softmax.
        attentions: where given, the probabilities `[B, H, 1, S]` are appended to it.
    """
    (a_q, b_q), (a_k, b_k), (a_v, b_v) = query, key, value
    products = b_k.flatten(1, 2) @ b_q.squeeze(1).transpose(1, 2)  # [B, S·R, Q]
    of_heads = (products @ (a_q.squeeze(1) * scale)).view(a_k.shape)  # [B, S, R, H]
    scores = _summed(of_heads, a_k)  # [B, S, H]
    if mask is not None:
        mask = mask[:, 0].transpose(1, 2)  # [B or 1, S, 1]
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
    exact = torch.promote_types(scores.dtype, torch.float32)
    probabilities = scores.softmax(dim=1, dtype=exact).to(b_v.dtype)  # [B, S, H]
    if attentions is not None:
        attentions.append(probabilities.transpose(1, 2).unsqueeze(2))
    weights = (probabilities.unsqueeze(2) * a_v).flatten(1, 2)  # [B, S·R, H]
    return (weights.transpose(1, 2) @ b_v.flatten(1, 2)).unsqueeze(2)


def _summed(x, y):
    """Σ_r x_r ⊙ y_r over the ranks: a pass for each, and no product of all of them in memory."""
    terms = zip(x.unbind(2), y.unbind(2), strict=True)
    first, second = next(terms)
    total = first * second
    for first, second in terms:
        total = torch.addcmul(total, first, second)
    return total
