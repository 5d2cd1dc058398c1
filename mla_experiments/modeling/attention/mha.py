"""Multi-head attention (Vaswani et al. 2017, Attention Is All You Need, §3.2.2) with rotary positions, as in Llama.

Every head has its own query, key and value:

    q_i = W_i^Q h,  k_i = W_i^K h,  v_i = W_i^V h,      o = W^O [o_1; ...; o_H]
    o_i = Σ_s softmax_s(q_i · k_i,s / sqrt(d_h)) v_i,s

Cached per token: keys and values of all heads, 2 · H · d_h numbers. The class is written for any number G of
key-value heads, G = H here; `gqa.py` and `mqa.py` choose another G and change nothing else.
"""

from typing import Any, ClassVar

import torch
from transformers.cache_utils import Cache

from ...kernels import attend, project
from .base import Attention, Options, Rotation
from .checks import head_width, require, require_groups, require_turnable
from .heads import split_heads
from .rope import rotate


class MHA(Attention):
    """Multi-head attention: G = H key-value heads."""

    description = "multi-head attention"
    equation = "o_i = Σ_s softmax_s(q_i · k_i,s / √d_h) v_i,s"
    stock = "llama"
    takes: ClassVar = frozenset({"output_gate", "qk_norm", "attention_bias"})
    fixed_options: ClassVar = frozenset({"num_key_value_heads"})
    head_dim: int
    num_key_value_heads: int

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        key_width = self.num_key_value_heads * self.head_dim
        self.q_proj = self.linear(hidden_size, self.num_heads * self.head_dim)
        self.k_proj = self.linear(hidden_size, key_width)
        self.v_proj = self.linear(hidden_size, key_width)
        self.make_norms(self.head_dim, self.num_key_value_heads)
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
        """`head_dim` (default: width / heads) and `num_key_value_heads` G (see `groups`)."""
        num_key_value_heads = cls.groups(num_attention_heads, num_key_value_heads)
        if head_dim is None:
            head_dim = head_width(hidden_size, num_attention_heads)
        require_groups(num_key_value_heads, num_attention_heads)
        require_turnable(head_dim, rotary)
        return {"head_dim": head_dim, "num_key_value_heads": num_key_value_heads}

    @classmethod
    def groups(cls, num_attention_heads: int, num_key_value_heads: int | None) -> int:
        """Return G: here one key-value head for each query head.

        Raises:
            UserError: another number was given.
        """
        require(
            num_key_value_heads in (None, num_attention_heads),
            f"num_key_value_heads={num_key_value_heads} is not num_attention_heads={num_attention_heads}; "
            'for shared key-value heads choose attention="gqa" or "mqa".',
        )
        return num_attention_heads

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
        """Project, rotate, remember, attend, project: see `Attention.forward`."""
        query = split_heads(project(self.q_proj, hidden_states), self.head_dim)  # [B, H, T, D]
        key = split_heads(project(self.k_proj, hidden_states), self.head_dim)  # [B, G, T, D]
        value = split_heads(project(self.v_proj, hidden_states), self.head_dim)  # [B, G, T, D]
        query, key = self.normed(query, key)
        if self.rotary:
            query = rotate(query, position_embeddings, self.rope_interleave)
            key = rotate(key, position_embeddings, self.rope_interleave)
        key, value = self.remember(cache, key, value, as_kept=True)  # [B, G, S, D]
        attended = attend(query, key, value, attention_mask, self.head_dim**-0.5, attentions)  # [B, H, T, D]
        return self.output(attended, hidden_states)

    def cache_parts(self) -> dict[str, int]:
        """2 · G · d_h: one key and one value per key-value head."""
        return dict.fromkeys(("keys", "values"), self.num_key_value_heads * self.head_dim)

    def flops(self, num_tokens: int, context: int) -> int:
        """Four projections, then scores and sums over the context; see `Attention.flops`."""
        projections = 2 * self.hidden_size * self.head_dim * (self.num_heads + 2 * self.num_key_value_heads)
        attention = 2 * context * self.num_heads * 2 * self.head_dim
        return num_tokens * (projections + attention) + self.output_flops(num_tokens)
