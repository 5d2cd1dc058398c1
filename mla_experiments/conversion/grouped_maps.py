"""Step 1: the keys and values of all groups as one latent that every head reads; exact.

A rotary pair of a head, written as one complex number, turns by e^{iωp} at position p (Su et al. 2021, RoFormer,
eq. 14-16), so the score of a token t for a token s of head i, which reads group g, is

    s_i(t, s) = Σ_f Re( conj(q_if) k_gf e^{-iω_f (t - s)} ),   q_if = a_if · h_t,   k_gf = b_gf · h_s.

Per frequency f the keys of all G groups are one vector k_f of G complex numbers. Any matrix that mixes them within a
frequency commutes with RoPE, which multiplies them all by one number: with components z_f = T_f k_f, kept in their
place, group g reads k_gf = Σ_j m_gfj z_fj, m_f = T_f⁻¹, and the heads of the group take the mixing into their queries:
conj(q_if) k_gf = Σ_j conj(q_if conj(m_gfj)) z_fj. So one rotary key of G · d_h numbers and one latent of the G · d_h
values serve all heads, as MLA's do (DeepSeek-V2, eq. 9-19): 2 G d_h numbers a token, as before. Here T is the
identity; `rotary_part.py` chooses it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

Tensor = torch.Tensor


class KeysAndValues(Protocol):
    """An attention layer of keys and values, its projections as in Llama."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_interleave: bool
    attention_bias: bool
    layer_idx: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def __call__(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, ...], /) -> Tensor:
        """`[N, T, D]` to `[N, T, D]`."""
        ...


@dataclass(frozen=True)
class GroupedMaps:
    """An attention layer as linear maps of its input, in double precision; E is its width, and 1 for biases at the end.

    Attributes:
        queries: `[H, F, E]`, complex: every head's rotary pairs, the scale of the scores in them.
        components: `[F, G, E]`, complex: per frequency the components z of all keys.
        mixing: `[G, F, G]`, complex: group, frequency, component: m in k_gf = Σ_j m_gfj z_fj.
        values: `[G, d_v, E]`.
        output: `[D, H · d_v]`, the projection of what the heads read.
    """

    queries: Tensor
    components: Tensor
    mixing: Tensor
    values: Tensor
    output: Tensor

    @property
    def num_heads(self) -> int:
        """H."""
        return self.queries.shape[0]

    @property
    def num_groups(self) -> int:
        """G."""
        return self.values.shape[0]

    @property
    def heads_per_group(self) -> int:
        """H / G: head i reads group ⌊i G / H⌋."""
        return self.num_heads // self.num_groups

    @property
    def keys(self) -> Tensor:
        """The keys of every group, `[G, F, E]`, complex."""
        return torch.einsum("gfj,fje->gfe", self.mixing, self.components)


def stacked(layer: KeysAndValues, attention_factor: float = 1.0) -> GroupedMaps:
    """Return the maps of a layer of keys and values, its components the keys themselves.

    Args:
        layer: of the original.
        attention_factor: on cosines and sines, see `rope.RotaryEmbedding`: queries and keys each have it.
    """
    groups, width = layer.num_key_value_heads, layer.head_dim
    scale = width**-0.5 * attention_factor**2
    queries = in_pairs(rows_of(layer.q_proj, layer.num_heads, width), layer.rope_interleave) * scale
    keys = in_pairs(rows_of(layer.k_proj, groups, width), layer.rope_interleave)
    own = torch.eye(groups, dtype=keys.dtype).unsqueeze(1).expand(groups, width // 2, groups)
    values = rows_of(layer.v_proj, groups, width)
    return GroupedMaps(queries, keys.transpose(0, 1), own, values, layer.o_proj.weight.detach().double().cpu())


def rows_of(projection: torch.nn.Linear, heads: int, width: int) -> Tensor:
    """Return a projection's matrix by head, `[heads, width, E]` in double precision, its bias as the last column."""
    weight = projection.weight.detach().double().cpu()
    if projection.bias is not None:
        weight = torch.cat((weight, projection.bias.detach().double().cpu().unsqueeze(1)), dim=1)
    return weight.view(heads, width, -1)


def in_pairs(rows: Tensor, interleaved: bool) -> Tensor:
    """Return the rotary pairs of `[heads, d, E]` as complex numbers, `[heads, d / 2, E]`; layouts as in `rope`."""
    first, second = (rows[:, 0::2], rows[:, 1::2]) if interleaved else rows.chunk(2, dim=1)
    return torch.complex(first, second)


def as_numbers(pairs: Tensor, dim: int) -> Tensor:
    """Return complex numbers as twice as many real ones, the real parts first (half-split), along a dimension."""
    return torch.cat((pairs.real, pairs.imag), dim=dim)
