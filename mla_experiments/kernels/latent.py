"""Attention over latents (absorbed MLA) in PyTorch, on any device: MQA over one buffer that is key and value at once.

All heads read the same d_c + d_R numbers a token; the first d_c of them are the value too. Queries of all heads, and
of several new tokens, are rows of one matrix, so that the buffer is read once for all. The context is taken in blocks,
each with its own softmax, joined at the end by their log-sums (Dao et al. 2023, Flash-Decoding): the scores of a long
context never sit in memory whole.
"""

import torch

SCORES_AT_ONCE = 1 << 20  # elements: 4 MiB in f32, which a core's share of the cache can hold


def attend_latents(
    query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return softmax(scale · query latentsᵀ + mask) latents[..., :value_width].

    Args:
        query: `[B, H, T, W]`, folded into the latent space.
        latents: `[B, S, W]`, W = d_c + d_R.
        value_width: d_c.
        mask: `[B or 1, 1, T, S]`, boolean (True attends) or additive; None means causal when T > 1, where T must
            equal S, and everything when T == 1.
        scale: factor on the scores before the softmax.

    Returns:
        `[B, H, T, value_width]`.
    """
    batch, num_heads, num_new, width = query.shape
    rows = (query * scale).reshape(batch, num_heads * num_new, width)
    if mask is None and num_new > 1:
        mask = torch.ones(num_new, num_new, dtype=torch.bool, device=query.device).tril()[None, None]
    length = max(1, SCORES_AT_ONCE // rows[..., 0].numel())
    outputs, tops, sums = [], [], []
    for start in range(0, latents.shape[1], length):
        block = latents[:, start : start + length]  # [B, L, W]
        scores = rows @ block.transpose(1, 2)  # [B, H·T, L]
        if mask is not None:
            scores = masked(scores.view(batch, num_heads, num_new, -1), mask[..., start : start + length]).view_as(
                scores
            )
        top = (
            scores.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
        )  # finite where all is masked
        weights = scores.sub_(top).exp_()
        outputs.append(weights @ block[..., :value_width])
        sums.append(weights.sum(dim=-1, keepdim=True))
        tops.append(top)
    output, total = (outputs[0], sums[0]) if len(outputs) == 1 else joined(outputs, tops, sums)
    output = output / total.clamp(min=torch.finfo(total.dtype).tiny)  # a row that sees nothing (padding) gives zeros
    return output.view(batch, num_heads, num_new, value_width)


def masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Apply a boolean or additive mask `[B or 1, 1, T, L]` to scores `[B, H, T, L]`, in place."""
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, float("-inf"))
    return scores.add_(mask)


def joined(outputs: list[torch.Tensor], tops: list[torch.Tensor], sums: list[torch.Tensor]):
    """Join blocks by the largest score of each; return the unnormalised output and the sum of weights."""
    top = torch.stack(tops)
    share = (top - top.amax(dim=0)).exp()
    return (torch.stack(outputs) * share).sum(dim=0), (torch.stack(sums) * share).sum(dim=0)
