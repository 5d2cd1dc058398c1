"""Step 3: one low-rank latent for key content and values together, weighted by what is read of it and where it goes.

The latent before is all keys' content and all values, W h, with W `[n, E]`; the latent after is A h, r numbers, from
which W h is made again as B A h. To second order, and as if tokens erred independently, the output of attention changes
in the mean square by

    tr(M^K (W^K - B^K A) C^K (W^K - B^K A)ᵀ) + tr(M^V (W^V - B^V A) C^V (W^V - B^V A)ᵀ)

  - M^V = Σ_i W_i^Oᵀ W_i^O by group: what the output projection makes of an error in a value,
    C^V = E[(Σ_s p_s h_s)(Σ_s p_s h_s)ᵀ]: inputs as attention mixes them, for values are read in a mean;
  - M^K = Σ_i Σ_t w_it q_it q_itᵀ by group, C^K = Σ_s w_s h_s h_sᵀ / Σ_s w_s: an error δ in a score of probability p
    moves the output by p δ (W^O v_s - o_t), so queries and tokens count by w = p² |W_i^O (v_s - o_t)|².

With C^K = C^V = C this is Eckart and Young's (1936): the singular vectors of M^½ W C^½, as in SVD-LLM (Wang et al.
2024, §3.1) and CARE, but weighted on both sides; the error is the tail of the singular values (`low_rank`). From there
A and B take turns (`balanced`), each the exact minimum given the other: B by least squares, A by a generalised
Sylvester equation, N^K A C^K + N^V A C^V = R, which is diagonal where both pairs of matrices are (Golub
and Van Loan, §8.7).
"""

import dataclasses
from dataclasses import dataclass

import torch

from .latent_maps import LatentMaps
from .moments import Moments

Tensor = torch.Tensor
RIDGE = 1e-6  # of the mean of a diagonal: covariances of few tokens have no inverse
TURNS = 5


@dataclass(frozen=True)
class Part:
    """Keys' content or values: rows W `[n, E]`, the weight of their errors M `[n, n]`, the covariance C `[E, E]`."""

    rows: Tensor
    weight: Tensor
    covariance: Tensor

    def error(self, made: Tensor) -> float:
        """Return tr(M (W - made) C (W - made)ᵀ)."""
        missing = self.rows - made
        return float(((self.weight @ missing @ self.covariance) * missing).sum())

    def up(self, down: Tensor) -> Tensor:
        """Return B `[n, r]`, the best for A `[r, E]`: W C Aᵀ (A C Aᵀ)⁻¹."""
        read = down @ self.covariance
        return torch.linalg.solve(read @ down.T, read @ self.rows.T).T


def with_rank(maps: LatentMaps, rank: int, moments: Moments, stand_in: Tensor, key_weight: float = 1.0) -> LatentMaps:
    """Return a layer with a latent of `rank` numbers; the layer itself where its latent has no more.

    Args:
        maps: of the layer, its latent all keys' content and all values side by side, or the values alone.
        rank: r.
        moments: of its input.
        stand_in: what stood in for the rotation of its content, see `rotary_part.without_rope`.
        key_weight: factor on M^K: errors of keys add up over tokens, which the second order above does not see.
    """
    if rank >= maps.rank:
        return maps
    keys, values = parts_of(maps, moments, stand_in, key_weight)
    down, ups = balanced(keys, values, *low_rank(keys, values, rank))
    up = torch.cat(ups)
    return dataclasses.replace(maps, latent=down, key_up=maps.key_up @ up, value_up=maps.value_up @ up)


def parts_of(maps: LatentMaps, moments: Moments, stand_in: Tensor, key_weight: float) -> tuple[Part, Part]:
    """Return the keys' content and the values, with what weighs their errors."""
    is_key = maps.key_up.abs().sum((0, 1)) > 0  # [rows of the latent]
    content = moments.content_queries(stand_in)  # [H, d, d]
    to_keys, to_values = maps.key_up[..., is_key], maps.value_up[..., ~is_key]
    of_keys = torch.einsum("hdn,hde,hem->nm", to_keys, content, to_keys)
    output = maps.output.unflatten(1, (maps.value_up.shape[0], -1))  # [D, H, d_v]
    made = torch.einsum("ohd,hdn->hon", output, to_values)
    of_values = torch.einsum("hon,hom->nm", made, made)
    return (
        Part(maps.latent[is_key], of_keys * key_weight, with_ridge(moments.read)),
        Part(maps.latent[~is_key], of_values, with_ridge(moments.attended)),
    )


def low_rank(keys: Part, values: Part, rank: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return A `[r, E]` and both B by Eckart and Young; C is that of both parts, each of trace 1, in sum."""
    u, s, v, left_inverse, right_inverse = singular([part for part in (keys, values) if len(part.rows)])
    root = s[:rank].sqrt()
    up = left_inverse @ u[:, :rank] * root
    return root.unsqueeze(1) * v[:rank] @ right_inverse, up.split((len(keys.rows), len(values.rows)))


def singular(parts: list[Part]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return U, S and V of M^½ W C^½, and M^-½ and C^-½, C as in `low_rank`."""
    first, *others = (part.covariance / part.covariance.trace() for part in parts)
    left, left_inverse = roots(torch.block_diag(*(part.weight for part in parts)))
    right, right_inverse = roots(sum(others, start=first))
    rows = torch.cat([part.rows for part in parts])
    return *torch.linalg.svd(left @ rows @ right, full_matrices=False), left_inverse, right_inverse


def balanced(
    keys: Part, values: Part, down: Tensor, ups: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return A and both B after they have taken turns; no turn makes the error larger."""
    if not len(keys.rows):
        return down, ups
    tokens, directions = diagonalised(keys.covariance, values.covariance)
    for _ in range(TURNS):
        key_up, value_up = keys.up(down), values.up(down)
        to_keys, to_values = key_up.T @ keys.weight, value_up.T @ values.weight
        wanted = to_keys @ keys.rows @ keys.covariance + to_values @ values.rows @ values.covariance
        shares, changes = diagonalised(to_keys @ key_up, with_ridge(to_values @ value_up))
        down = changes @ ((changes.T @ wanted @ directions) / (shares.unsqueeze(1) * tokens + 1)) @ directions.T
    return down, (keys.up(down), values.up(down))


def diagonalised(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return λ and X of two symmetric matrices, the second positive: Xᵀ first X = diag(λ), Xᵀ second X = 1."""
    factor = torch.linalg.cholesky(second)
    half = torch.linalg.solve_triangular(factor, first, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
    values, vectors = torch.linalg.eigh((whole + whole.T) / 2)
    return values.clamp(min=0), torch.linalg.solve_triangular(factor.T, vectors, upper=True)


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric root of a positive matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(with_ridge(matrix))
    values = values.clamp(min=float(values.max()) * 1e-15)
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def with_ridge(matrix: Tensor) -> Tensor:
    """Return a matrix with a little of its mean diagonal added to the diagonal."""
    return matrix + RIDGE * float(matrix.diagonal().mean()) * torch.eye(len(matrix), dtype=matrix.dtype)
