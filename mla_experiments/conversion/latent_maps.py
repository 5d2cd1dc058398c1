"""MLA as linear maps of a layer's input, and the weights that they are.

    c = A h,  k_i = [U_i^K c; k^R],  v_i = U_i^V c,  q_i = [q_i^C; q_i^R]     (DeepSeek-V2, eq. 9-19, no norm of c)

MLA divides scores by √(d_n + d_R); the queries here have their scale in them, so that the weights take it out again.
"""

import dataclasses
from dataclasses import dataclass

import torch

from ..kernels import attend
from ..modeling.attention.heads import merge_heads
from ..modeling.attention.rope import rotate

Tensor = torch.Tensor
OF_THE_INPUT = ("q_proj", "q_a_proj", "kv_a_proj_with_mqa")  # which may have biases
LEAST_VARIANCE = 1e-12  # of the largest: a direction that never varies is not blown up to rounding errors


@dataclass(frozen=True)
class LatentMaps:
    """The maps of one layer, in double precision; E is its width, and 1 for biases at the end.

    Attributes:
        latent: A, `[r, E]`.
        key_up: U^K, `[H, d_n, r]`.
        value_up: U^V, `[H, d_v, r]`.
        content_queries: `[H, d_n, E]`; of a latent of queries `[H, d_n, r_q]`.
        rotary_queries: `[H, d_R, E]`, half-split; likewise.
        rotary_key: `[d_R, E]`, half-split.
        output: `[D, H · d_v]`.
        query_latent: A of the queries, `[r_q, E]`; None where they are maps of the input.
    """

    latent: Tensor
    key_up: Tensor
    value_up: Tensor
    content_queries: Tensor
    rotary_queries: Tensor
    rotary_key: Tensor
    output: Tensor
    query_latent: Tensor | None = None

    @property
    def rank(self) -> int:
        """d_c, of the latent."""
        return self.latent.shape[0]

    @property
    def rotary(self) -> int:
        """d_R, of the rotary key."""
        return self.rotary_key.shape[0]


def weights_of(maps: LatentMaps, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of an MLA layer without a norm of its latent, by their names in it.

    Args:
        maps: of the layer.
        dtype: of the weights.
    """
    queries = torch.cat((maps.content_queries, maps.rotary_queries), dim=1)  # [H, d_n + d_R, E or r_q]
    flat = (queries * queries.shape[1] ** 0.5).flatten(0, 1)
    asking = {"q_proj": flat} if maps.query_latent is None else {"q_a_proj": maps.query_latent, "q_b_proj": flat}
    made = asking | {
        "kv_a_proj_with_mqa": torch.cat((maps.latent, maps.rotary_key)),
        "kv_b_proj": torch.cat((maps.key_up, maps.value_up), dim=1).flatten(0, 1),
        "o_proj": maps.output,
    }
    weights, width = {}, maps.output.shape[0]
    for name, matrix in made.items():
        weights[f"{name}.weight"] = matrix[:, :width] if name in OF_THE_INPUT else matrix
        if name in OF_THE_INPUT and matrix.shape[1] > width:
            weights[f"{name}.bias"] = matrix[:, width]
    return {name: weight.to(dtype).contiguous() for name, weight in weights.items()}


def read_by_heads(maps: LatentMaps, rows: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return what the heads of a layer of these maps read, side by side, `[B, T, H · d_v]`, in their dtype.

    Args:
        maps: of the layer.
        rows: its inputs, `[B, T, E]`.
        rotation: cosines and sines, `[1, T, d_R / 2]`.
    """
    rows = rows.unsqueeze(1)  # [B, 1, T, E]
    latent = rows @ maps.latent.T  # [B, 1, T, r]
    turned = rotate(rows @ maps.rotary_key.T, rotation, False).expand(-1, len(maps.key_up), -1, -1)  # [B, H, T, d_R]
    asking = rows if maps.query_latent is None else rows @ maps.query_latent.T  # [B, 1, T, E or r_q]
    turned_queries = rotate(asking @ maps.rotary_queries.transpose(1, 2), rotation, False)
    query = torch.cat((asking @ maps.content_queries.transpose(1, 2), turned_queries), dim=-1)  # [B, H, T, d_n + d_R]
    key = torch.cat((latent @ maps.key_up.transpose(1, 2), turned), dim=-1)
    value = latent @ maps.value_up.transpose(1, 2)  # [B, H, T, d_v]
    return merge_heads(attend(query, key, value, None, 1.0))


def output_of(maps: LatentMaps, rows: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return what a layer of these maps gives, `[B, T, D]`; arguments as in `read_by_heads`."""
    return read_by_heads(maps, rows, rotation) @ maps.output.T


def in_single_precision(maps: LatentMaps) -> LatentMaps:
    """Return the maps in single precision, in which a layer computes."""
    single = {name: value.float() for name, value in vars(maps).items() if value is not None}
    return dataclasses.replace(maps, **single)


def in_unit_variance(maps: LatentMaps, covariance: Tensor) -> LatentMaps:
    """Return the same layer, exactly, with what it caches in unit variance: latents uncorrelated, rotary pairs scaled.

    Where nothing is said of how latents and keys are scaled, c → S c with U → U S⁻¹ changes nothing else. So they
    are in the range that half precision, 8-bit caches and an optimizer's steps want.

    Args:
        maps: of the layer.
        covariance: of its inputs, `[E, E]`.
    """
    values, vectors = torch.linalg.eigh(maps.latent @ covariance @ maps.latent.T)
    scale = values.clamp(min=float(values.max()) * LEAST_VARIANCE).sqrt()
    wider = (vectors * scale) @ vectors.T
    pairs = ((maps.rotary_key @ covariance) * maps.rotary_key).sum(1).view(2, -1).mean(0)  # [d_R / 2]
    length = pairs.clamp(min=float(pairs.max()) * LEAST_VARIANCE).sqrt().repeat(2).unsqueeze(1)
    return dataclasses.replace(
        maps,
        latent=(vectors / scale) @ vectors.T @ maps.latent,
        key_up=maps.key_up @ wider,
        value_up=maps.value_up @ wider,
        rotary_key=maps.rotary_key / length,
        rotary_queries=maps.rotary_queries * length,
    )
