"""Grouped-tied attention (Zadouri, Strauss & Dao 2025, Hardware-Efficient Attention for Fast Decoding, GTA).

As in `gqa.py`, G groups of heads share what is cached; but a group's key and value are tied, one state for both. What
RoPE has turned is of no use as a value, so that only half of a key is the tied state, and the other half is a rotary
key of its own, one for all groups, as `mla.py` has:

    t_g = W_g h                                            the tied state of group g, d numbers
    k_g = [t_g[:d/2]; k^R],  k^R = RoPE(W^KR h);   v_g = t_g
    q_i = [q_i^C; RoPE(q_i^R)],  [q_i^C; q_i^R] = W_i^Q h
    o_i = Σ_s softmax_s(q_i · k_g,s / sqrt(d)) v_g,s,  g = ⌊i · G / H⌋,      o = W^O [o_1; ...]

Cached per token: all t_g and k^R, G · d + d/2 numbers, about half of GQA's. Without RoPE there is no rotary half, and
keys are whole tied states: with G = H that is MHA with W^K = W^V.
"""

from typing import Any, ClassVar

import torch
from transformers.cache_utils import Cache

from ...kernels import attend, attend_parts, plain, project
from .base import Attention, Options, Rotation
from .checks import head_width, require, require_groups
from .gqa import GQA
from .heads import split_heads
from .remember import remember_state
from .rope import rotate, score_factor

FEW_TOKENS = 16  # new tokens up to which a cache is read as it lies; for more, a copy of it costs less than it saves


class GTA(Attention):
    """Grouped-tied attention: one state a group is value and half the key, one rotary half serves all groups."""

    description = "grouped-tied attention"
    equation = "o_i = Σ_s softmax_s(q_i · [t_g,s[:d/2]; k_s^R] / √d) t_g,s,  g = ⌊i · G / H⌋"
    cache_option = "num_key_value_heads"
    takes: ClassVar = frozenset({"output_gate", "attention_bias"})
    head_dim: int
    num_key_value_heads: int

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        self.rope_dim = self.head_dim // 2 if self.rotary else 0
        self.content = self.head_dim - self.rope_dim  # of a key, the numbers that are tied
        self.scale = self.head_dim**-0.5 * score_factor(self.rope_parameters)
        self.q_proj = self.linear(hidden_size, self.num_heads * self.head_dim)
        self.kv_proj = self.linear(hidden_size, self.num_key_value_heads * self.head_dim)
        if self.rotary:
            self.k_rope_proj = self.linear(hidden_size, self.rope_dim)
        self.make_output(self.head_dim)

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        head_dim: int | None = None,
        num_key_value_heads: int | None = None,
    ) -> Options:
        """`head_dim` d (default: width / heads) and `num_key_value_heads` G (default: as GQA's)."""
        groups = GQA.groups(num_attention_heads, num_key_value_heads)
        if head_dim is None:
            head_dim = head_width(hidden_size, num_attention_heads)
        require_groups(groups, num_attention_heads)
        require(
            head_dim >= 1 and not (rotary and head_dim % 4),
            f"head_dim={head_dim}, half of which RoPE turns, must be positive and a multiple of 4; "
            "change hidden_size or num_attention_heads, or give head_dim.",
        )
        return {"head_dim": head_dim, "num_key_value_heads": groups}

    @classmethod
    def rotary_dim(cls, options: Options) -> int:
        """RoPE turns the shared half of a key."""
        return options["head_dim"] // 2

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Project, rotate, remember, attend to what is tied, project: see `Attention.forward`."""
        query = split_heads(project(self.q_proj, hidden_states), self.head_dim)  # [B, H, T, d]
        tied = project(self.kv_proj, hidden_states).unsqueeze(1)  # [B, 1, T, G·d]
        if self.rotary:
            q_nope, q_rope = query.split((self.content, self.rope_dim), dim=-1)
            query = torch.cat((q_nope, rotate(q_rope, position_embeddings, self.rope_interleave)), dim=-1)
            k_rope = project(self.k_rope_proj, hidden_states).unsqueeze(1)  # [B, 1, T, d/2]
            tied = torch.cat((tied, rotate(k_rope, position_embeddings, self.rope_interleave)), dim=-1)
        parts = (self.head_dim,) * self.num_key_value_heads + (self.rope_dim,) * self.rotary
        rows = remember_state(cache, self.layer_idx, tied, attention_mask, parts, True)  # [B, 1, S, G·d + d/2]
        if tied.shape[2] <= FEW_TOKENS and tied.shape[2] < rows.shape[2]:
            grouped = query.unflatten(1, (self.num_key_value_heads, -1))  # [B, G, H/G, T, d]
            attended = attend_parts(grouped, rows.squeeze(1), self.head_dim, attention_mask, self.scale, attentions)
            attended = attended.flatten(1, 2)
        else:
            attended = attend(query, *self.untied(plain(rows)), attention_mask, self.scale, attentions)  # [B, H, T, d]
        return self.output(attended, hidden_states)

    def untied(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return every group's key and value, each `[B, G, S, d]`, from the rows of a cache `[B, 1, S, G·d + d/2]`."""
        value = split_heads(rows[..., : rows.shape[-1] - self.rope_dim].squeeze(1), self.head_dim)  # [B, G, S, d]
        if not self.rotary:
            return value, value
        k_rope = rows[..., -self.rope_dim :].expand(-1, self.num_key_value_heads, -1, -1)  # [B, G, S, d/2]
        return torch.cat((value[..., : self.content], k_rope), dim=-1), value

    def cache_parts(self) -> dict[str, int]:
        """G · d + d/2: one state per group, which is key and value, and one rotary half key for all."""
        return {"tied states": self.num_key_value_heads * self.head_dim, "rotary key": self.rope_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """Projections, then scores and sums over the context; see `Attention.flops`."""
        widths = (self.num_heads + self.num_key_value_heads) * self.head_dim + self.rope_dim
        attention = context * self.num_heads * 2 * self.head_dim
        return 2 * num_tokens * (self.hidden_size * widths + attention) + self.output_flops(num_tokens)
