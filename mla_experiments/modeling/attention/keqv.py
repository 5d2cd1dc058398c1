"""Keys that are values too (Gemma 4's `attention_k_eq_v`, Google 2026; DeepSeek-V4): one state a group for both.

As in `gqa.py`, G groups of heads share what is cached. As in `gta.py` a group has one state for its key and its value;
but the whole key is that state, turned. What RoPE has turned is of no use as a value, so that the state is kept as it
is, and keys are turned when they are read, once for all heads of a group:

    t_g = W_g h / rms(W_g h)                       the state of group g, d numbers
    k_g = RoPE(w_k ⊙ t_g),  v_g = t_g              w_k: the weight of the keys' norm
    q_i = RoPE(RMSNorm(W_i^Q h))
    o_i = Σ_s softmax_s(q_i · k_g,s / sqrt(d)) v_g,s,  g = ⌊i · G / H⌋,      o = W^O [o_1; ...]

Cached per token: G · d numbers, half of GQA's. Gemma keeps both keys and values, 2 · G · d, and leaves out 1 / sqrt(d),
which the weight of the queries' norm can hold. Positions in the cache must follow one another, padding apart.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, attend_turned, normalise, plain, project, stands_alone
from .base import Attention, Options, Rotation
from .checks import head_width, require_groups, require_turnable
from .gqa import GQA
from .heads import split_heads
from .remember import remember_state
from .rope import rotate, tables_as_read


class Weight(nn.Module):
    """The weight of a norm: what it does to what is normed already."""

    weight: nn.Parameter

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[..., D]`."""
        return x * self.weight


class KEqV(Attention):
    """Keys = values: one state a group, kept as it is and turned when it is read as a key."""

    description = "attention whose keys are its values"
    equation = "o_i = Σ_s softmax_s(q_i · RoPE(w_k ⊙ t_g,s) / √d) t_g,s,  g = ⌊i · G / H⌋"
    cache_option = "num_key_value_heads"
    takes: ClassVar = frozenset({"output_gate", "attention_bias"})
    turns_when_read = True
    head_dim: int
    num_key_value_heads: int
    k_norm: Weight

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        self.q_proj = self.linear(hidden_size, self.num_heads * self.head_dim)
        self.k_proj = self.linear(hidden_size, self.num_key_value_heads * self.head_dim)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=self.rms_norm_eps)
        self.k_norm = Weight(self.head_dim)
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
        require_groups(groups, num_attention_heads)
        head_dim = head_width(hidden_size, num_attention_heads) if head_dim is None else head_dim
        require_turnable(head_dim, rotary)
        return {"head_dim": head_dim, "num_key_value_heads": groups}

    @classmethod
    def rotary_dim(cls, options: Options) -> int:
        """RoPE turns whole keys."""
        return options["head_dim"]

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Project, norm, remember, rotate what is read, attend, project: see `Attention.forward`."""
        query = normalise(self.q_norm, split_heads(project(self.q_proj, hidden_states), self.head_dim))  # [B, H, T, d]
        state = split_heads(project(self.k_proj, hidden_states), self.head_dim)  # [B, G, T, d]
        state = nn.functional.rms_norm(state, (self.head_dim,), eps=self.rms_norm_eps)
        kept = plain(remember_state(cache, self.layer_idx, state, attention_mask))  # [B, G, S, d]
        scale = self.head_dim**-0.5
        if not self.rotary:
            attended = attend(query, self.k_norm(kept), kept, attention_mask, scale, attentions)
            return self.output(attended, hidden_states)
        key, weight = (kept, self.k_norm.weight) if stands_alone(self.k_norm) else (self.k_norm(kept), None)
        of_new, of_kept = tables_as_read(position_embeddings, kept.shape[2])
        attended = attend_turned(
            rotate(query, of_new, self.rope_interleave), key, kept, attention_mask, scale, of_kept,
            self.rope_interleave, weight, attentions,
        )  # fmt: skip
        return self.output(attended, hidden_states)

    def cache_parts(self) -> dict[str, int]:
        """G · d: one state per group, which is its key, turned, and its value."""
        return {"states": self.num_key_value_heads * self.head_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """Three projections, then scores and sums over the context; see `Attention.flops`."""
        projections = self.hidden_size * self.head_dim * (self.num_heads + self.num_key_value_heads)
        attention = context * self.num_heads * 2 * self.head_dim
        return 2 * num_tokens * (projections + attention) + self.output_flops(num_tokens)
