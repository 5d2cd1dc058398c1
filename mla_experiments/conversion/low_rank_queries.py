"""Step 4, if asked for: queries from a latent of their own, weighted by what they are asked and what they ask.

The queries of all heads are one linear map of the input, q = Q h, with Q `[H d, E]`; from a latent of r numbers they
are B A h (DeepSeek-V2, eq. 12-14). An error δ in a score of probability p moves the output by p δ (W^O v_s - o_t), so
that errors δq count, to second order and as if queries erred independently of what they meet, by

    Σ_i Σ_ts w_its (δq_it · k_is)²  ≈  tr(M (Q - BA) C (Q - BA)ᵀ),     w = p² |W_i^O (v_s - o_t)|²

  - C = Σ_t w_t h_t h_tᵀ / Σ_t w_t, inputs by how much the output depends on what is asked at them;
  - M block-diagonal over heads, M_i = w_i E[k_i k_iᵀ]. Rotary pairs are met turned by all angles, in whose mean a pair
    has |k_f|² / 2 in both of its numbers, and nothing beside other frequencies or content; components of one frequency
    are uncorrelated (`rotary_part.concentrated`).

That is Eckart and Young's problem (1936), as in `joint_rank.low_rank`: with M^½ Q C^½ = U S Vᵀ the best of rank r are
A = V_rᵀ C^-½ and B = M^-½ U_r S_r, and the error is the tail of the squared singular values. A h is of unit variance.
"""

import dataclasses

import torch

from .joint_rank import RIDGE, roots
from .latent_maps import LatentMaps
from .moments import Moments

Tensor = torch.Tensor


def with_query_rank(maps: LatentMaps, rank: int, moments: Moments) -> LatentMaps:
    """Return a layer whose queries come from a latent of `rank` numbers, or of as many as queries have.

    Args:
        maps: of the layer, its queries maps of the input.
        rank: r.
        moments: of its input, `asked` among them.
    """
    if moments.asked is None:
        raise ValueError("these moments were taken without those of what is asked")
    queries = torch.cat((maps.content_queries, maps.rotary_queries), dim=1)  # [H, d_n + d_R, E]
    down, up = low_rank(queries, key_weights(maps, moments), moments.asked, rank)
    content, rotary = up.split((maps.content_queries.shape[1], maps.rotary), dim=1)
    return dataclasses.replace(maps, query_latent=down, content_queries=content, rotary_queries=rotary)


def key_weights(maps: LatentMaps, moments: Moments) -> Tensor:
    """Return M, `[H, d_n + d_R, d_n + d_R]`: second moments of what the queries of every head are multiplied with."""
    latent = maps.latent @ moments.read @ maps.latent.T
    content = maps.key_up @ latent @ maps.key_up.transpose(1, 2)  # [H, d_n, d_n]
    energy = ((maps.rotary_key @ moments.read) * maps.rotary_key).sum(1)  # [d_R], half-split
    rotary = torch.diag(energy.view(2, -1).mean(0).repeat(2))
    of_heads = moments.distances.sum(1) / moments.distances.sum()  # w_i
    return torch.stack([share * torch.block_diag(own, rotary) for share, own in zip(of_heads, content, strict=True)])


def low_rank(queries: Tensor, weights: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A `[r, E]` and B `[H, d, r]`, the best in place of Q.

    Args:
        queries: Q, `[H, d, E]`.
        weights: M, `[H, d, d]`.
        covariance: C, `[E, E]`.
        rank: r.
    """
    ridge = RIDGE * weights.diagonal(dim1=1, dim2=2).mean() * torch.eye(weights.shape[1], dtype=weights.dtype)
    left, left_inverse = (torch.stack(one) for one in zip(*map(roots, weights + ridge), strict=True))  # [H, d, d]
    right, right_inverse = roots(covariance)
    u, s, v = torch.linalg.svd((left @ queries @ right).flatten(0, 1), full_matrices=False)
    up = left_inverse @ (u[:, :rank] * s[:rank]).unflatten(0, queries.shape[:2])
    return v[:rank] @ right_inverse, up
