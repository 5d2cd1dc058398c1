"""Multi-matrix factorisation attention (Hu et al. 2024, Multi-matrix Factorization Attention, arXiv 2412.19255).

As in `mqa.py` all heads read one key and one value. But these are wide, C numbers each, more than width / heads, which
a cache of two vectors can afford; and queries as wide as that come through a low rank, which weights can afford:

    q_i = RoPE(Q_i RMSNorm(S^q h)),  k = RoPE(S^k h),  v = S^v h,      o = Σ_i O_i o_i
    o_i = Σ_s softmax_s(q_i · k_s / sqrt(C)) v_s

Cached per token: k and v, 2 · C numbers. The paper gives the latent of the queries C numbers too, and no norm; the
norm and a rank of its own are those of Step-3 (StepFun 2025, arXiv 2507.19427: width 7168, 64 heads of 256, rank 2048).
Weights are named as in `mla.py` for queries and as in `mha.py` for the rest. In `mfa_kr.py` values are made from keys.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, normalise, project
from .base import Attention, Options, Rotation
from .checks import head_width, require, require_turnable
from .heads import split_heads
from .rope import rotate


class MFA(Attention):
    """Multi-matrix factorisation attention: one wide key and value, low-rank queries."""

    description = "multi-matrix factorisation attention"
    equation = "o_i = Σ_s softmax_s(Q_i RMSNorm(S^q h) · k_s / √C) v_s"
    cache_option = "head_dim"
    takes: ClassVar = frozenset({"output_gate", "qk_norm", "attention_bias"})
    head_dim: int
    q_lora_rank: int

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        self.q_a_proj = self.linear(hidden_size, self.q_lora_rank)
        self.q_a_layernorm = nn.RMSNorm(self.q_lora_rank, eps=self.rms_norm_eps)
        self.q_b_proj = nn.Linear(self.q_lora_rank, self.num_heads * self.head_dim, bias=False)
        self.k_proj = self.linear(hidden_size, self.head_dim)
        self.make_values()
        self.make_norms(self.head_dim, key_heads=1)
        self.make_output(self.head_dim)

    def make_values(self) -> None:
        """Make what values come from: a projection of the hidden states."""
        self.v_proj = self.linear(self.hidden_size, self.head_dim)

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        head_dim: int | None = None,
        q_lora_rank: int | None = None,
    ) -> Options:
        """`head_dim` is C (default: twice width / heads), `q_lora_rank` the rank of the queries (default: width / 2).

        With these defaults, of 16 heads, a layer has 3.75 · width² weights, about the 4 · width² of MHA.
        """
        head_dim = 2 * head_width(hidden_size, num_attention_heads) if head_dim is None else head_dim
        require_turnable(head_dim, rotary)
        q_lora_rank = max(1, hidden_size // 2) if q_lora_rank is None else q_lora_rank
        require(q_lora_rank >= 1, f"q_lora_rank={q_lora_rank} must be at least 1.")
        return {"head_dim": head_dim, "q_lora_rank": q_lora_rank}

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
        query = self.queries(hidden_states)  # [B, H, T, C]
        key = project(self.k_proj, hidden_states).unsqueeze(1)  # [B, 1, T, C]
        value = project(self.v_proj, hidden_states).unsqueeze(1)  # [B, 1, T, C]
        query, key = self.normed(query, key)
        if self.rotary:
            query = rotate(query, position_embeddings, self.rope_interleave)
            key = rotate(key, position_embeddings, self.rope_interleave)
        key, value = self.remember(cache, key, value, as_kept=True)  # [B, 1, S, C]
        attended = attend(query, key, value, attention_mask, self.head_dim**-0.5, attentions)  # [B, H, T, C]
        return self.output(attended, hidden_states)

    def queries(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the queries, through their latent: `[B, T, D]` to `[B, H, T, C]`."""
        latent = normalise(self.q_a_layernorm, project(self.q_a_proj, hidden_states))  # [B, T, rank]
        return split_heads(project(self.q_b_proj, latent), self.head_dim)

    def cache_parts(self) -> dict[str, int]:
        """2 · C: one key and one value for all heads."""
        return dict.fromkeys(("keys", "values"), self.head_dim)

    def flops(self, num_tokens: int, context: int) -> int:
        """Five projections, then scores and sums over the context; see `Attention.flops`."""
        width = self.num_heads * self.head_dim
        queries = self.q_lora_rank * (self.hidden_size + width)
        projections = queries + self.hidden_size * 2 * self.head_dim
        return 2 * num_tokens * (projections + context * 2 * width) + self.output_flops(num_tokens)
