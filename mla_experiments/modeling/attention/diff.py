"""Differential attention (Ye et al. 2024, Differential Transformer, arXiv 2410.05258, §2.1).

As in `gqa.py`, G groups of heads share keys and values. But a head has two queries and a group two keys, of d numbers,
half as wide as the value; so a head has two softmaxes, and reads the difference of what they read. What both pay
attention to, the noise, cancels out. Each head is normed alone before the projection:

    q_i = RoPE(W_i^Q h),  q'_i = RoPE(W_i^Q' h),  k_g = RoPE(W_g^K h),  k'_g = RoPE(W_g^K' h)    d numbers each
    v_g = W_g^V h                                                                               2d numbers
    o_i = Σ_s (softmax_s(q_i · k_g,s / sqrt(d)) - λ softmax_s(q'_i · k'_g,s / sqrt(d))) v_g,s
    o = W^O [(1 - λ_init) RMSNorm(o_1); ...; (1 - λ_init) RMSNorm(o_H)]
    λ = exp(λ_q1 · λ_k1) - exp(λ_q2 · λ_k2) + λ_init,   λ_init = 0.8 - 0.6 exp(-0.3 · layer), of the first layer 0

The four vectors of λ are the layer's, for all heads. Cached per token: 2 · G · 2d numbers, by default as many as MHA's.
Weights are named and ordered as in transformers' DiffLlama, whose `num_attention_heads` counts softmaxes, 2H: first all
heads' first queries, then all second ones; so are keys, and the halves of the values. As there the norm has no weight,
which W^O can hold. The paper compares with half as many heads as MHA has, so that d is MHA's width of a head.
"""

import math
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, plain, project
from .base import Attention, Options, Rotation
from .checks import head_width, require, require_groups, require_turnable
from .heads import split_heads
from .rope import rotate

LAMBDA_STD = 0.1  # of the vectors of λ at the start


class Diff(Attention):
    """Differential attention: two softmaxes a head, one subtracted from the other."""

    description = "differential attention"
    equation = "o_i = Σ_s (softmax_s(q_i · k_g,s / √d) - λ softmax_s(q'_i · k'_g,s / √d)) v_g,s,  g = ⌊i · G / H⌋"
    cache_option = "num_key_value_heads"
    softmaxes_per_head = 2
    takes: ClassVar = frozenset({"output_gate", "qk_norm", "attention_bias"})
    head_dim: int
    num_key_value_heads: int
    lambda_q1: nn.Parameter
    lambda_k1: nn.Parameter
    lambda_q2: nn.Parameter
    lambda_k2: nn.Parameter

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        key_width = self.num_key_value_heads * 2 * self.head_dim
        self.q_proj = self.linear(hidden_size, self.num_heads * 2 * self.head_dim)
        self.k_proj = self.linear(hidden_size, key_width)
        self.v_proj = self.linear(hidden_size, key_width)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * self.layer_idx)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            self.register_parameter(name, nn.Parameter(LAMBDA_STD * torch.randn(self.head_dim)))
        self.make_norms(self.head_dim, 2 * self.num_key_value_heads)
        self.make_output(2 * self.head_dim)

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
        """`head_dim` is d, half of a value (default: width / heads / 2), `num_key_value_heads` G (default: heads)."""
        if head_dim is None:
            width = head_width(hidden_size, num_attention_heads)
            require(width % 2 == 0, f"hidden_size / num_attention_heads={width} must be even, or head_dim given.")
            head_dim = width // 2
        require_turnable(head_dim, rotary)
        groups = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        require_groups(groups, num_attention_heads)
        return {"head_dim": head_dim, "num_key_value_heads": groups}

    @classmethod
    def rotary_dim(cls, options: Options) -> int:
        """RoPE turns each of the two keys whole."""
        return options["head_dim"]

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Project, rotate, remember, attend twice, subtract, norm, project: see `Attention.forward`.

        A head has two softmaxes: the probabilities that `attentions` is given are `[B, 2·H, T, S]`, first ones first.
        """
        query = split_heads(project(self.q_proj, hidden_states), self.head_dim)  # [B, 2·H, T, d]
        key = split_heads(project(self.k_proj, hidden_states), self.head_dim)  # [B, 2·G, T, d]
        value = split_heads(project(self.v_proj, hidden_states), self.head_dim)  # [B, 2·G, T, d]
        query, key = self.normed(query, key)
        if self.rotary:
            query = rotate(query, position_embeddings, self.rope_interleave)
            key = rotate(key, position_embeddings, self.rope_interleave)
        key, value = (torch.cat(x.chunk(2, dim=1), dim=-1) for x in (key, value))  # [B, G, T, 2d]
        kept, value = (plain(x) for x in self.remember(cache, key, value))  # [B, G, S, 2d]
        keys, scale = kept.split(self.head_dim, dim=-1), self.head_dim**-0.5  # 2 · [B, G, S, d]
        if attentions is None:
            queries = query.chunk(2, dim=1)
            first, second = (attend(queries[m], keys[m], value, attention_mask, scale) for m in (0, 1))  # [B, H, T, 2d]
        else:  # what is shown is what is computed with, in one piece
            both = torch.cat(keys, dim=1), torch.cat((value, value), dim=1)
            first, second = attend(query, *both, attention_mask, scale, attentions).chunk(2, dim=1)
        attended = first - self.share().to(first.dtype) * second
        attended = nn.functional.rms_norm(attended, (2 * self.head_dim,), eps=self.rms_norm_eps)
        return self.output((1 - self.lambda_init) * attended, hidden_states)

    def share(self) -> torch.Tensor:
        """Return λ, at least in single precision."""
        dtype = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        first = (self.lambda_q1 * self.lambda_k1).sum(dtype=dtype).exp()
        return first - (self.lambda_q2 * self.lambda_k2).sum(dtype=dtype).exp() + self.lambda_init

    def cache_parts(self) -> dict[str, int]:
        """2 · G · 2d: two keys, and a value as wide as both, per group."""
        return dict.fromkeys(("keys", "values"), self.num_key_value_heads * 2 * self.head_dim)

    def flops(self, num_tokens: int, context: int) -> int:
        """Four projections, then two scores and two sums of wide values over the context; see `Attention.flops`."""
        projections = self.hidden_size * 2 * self.head_dim * (self.num_heads + 2 * self.num_key_value_heads)
        attention = context * self.num_heads * 2 * 3 * self.head_dim
        return 2 * num_tokens * (projections + attention) + self.output_flops(num_tokens)
