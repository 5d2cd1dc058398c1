"""Tensor product attention (Zhang et al. 2025, Tensor Product Attention Is All You Need, §3, eq. 3.1-3.6; §5).

As in `mha.py` every head has its own query, key and value, and RoPE turns them whole. But for a token they are one
matrix of H heads times d_h, and that is a sum of few products of two vectors, its factors: a says how much a head gets,
b what of. Both are linear in the token's own state, so that no matrix but W^O is shared with what is cached:

    q_i = 1/R_Q Σ_r a_r^Q[i] RoPE(b_r^Q),    a_r^Q = W_r^aQ h  (H numbers),  b_r^Q = W_r^bQ h  (d_h numbers)  (eq. 3.1)
    k_i = 1/R_K Σ_r a_r^K[i] RoPE(b_r^K),    v_i = 1/R_V Σ_r a_r^V[i] b_r^V                              (eq. 3.1, 3.5)
    o_i = Σ_s softmax_s(q_i · k_i,s / sqrt(d_h)) v_i,s,    o = W^O [o_1; ...; o_H]                       (eq. 3.2-3.3)

Cached per token: the factors of keys and values, (R_K + R_V)(H + d_h) numbers (§3.3), here with R_K = R_V = R, as in
the paper's models. A decoding step works from the factors as they are (§5). With R = G and an a that is the same for
every token, as a bias makes it, TPA is GQA (§4). A norm of keys would need whole keys, and is not followed.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, attend_factors, plain, project
from .base import Attention, Options, Rotation
from .checks import head_width, require, require_turnable
from .rope import rotate

Factors = tuple[torch.Tensor, torch.Tensor]  # a [B, T, R, H], with 1/R in it, and b [B, T, R, D]
FEW_TOKENS = 4  # more of them cost less over expanded keys and values (a CPU, 16 heads of 32, ranks 6 and 2)


class TPA(Attention):
    """Tensor product attention: queries, keys and values in contextual factors."""

    description = "tensor product attention"
    equation = "o_i = Σ_s softmax_s(q_i · k_i,s / √d_h) v_i,s,  k_i = 1/R Σ_r a_r[i] RoPE(b_r),  q_i and v_i likewise"
    cache_option = "kv_rank"
    takes: ClassVar = frozenset({"output_gate", "attention_bias"})
    head_dim: int
    q_rank: int
    kv_rank: int

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        width = self.num_heads + self.head_dim  # [a_r; b_r] of one rank
        self.q_proj = self.linear(hidden_size, self.q_rank * width)
        self.k_proj = self.linear(hidden_size, self.kv_rank * width)
        self.v_proj = self.linear(hidden_size, self.kv_rank * width)
        self.make_output(self.head_dim)

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        head_dim: int | None = None,
        q_rank: int | None = None,
        kv_rank: int | None = None,
    ) -> Options:
        """`head_dim` is d_h (default: width / heads), `q_rank` R_Q and `kv_rank` R = R_K = R_V; the paper's 6 and 2."""
        head_dim = head_width(hidden_size, num_attention_heads) if head_dim is None else head_dim
        require_turnable(head_dim, rotary)
        ranks = {"q_rank": 6 if q_rank is None else q_rank, "kv_rank": 2 if kv_rank is None else kv_rank}
        for name, rank in ranks.items():
            require(rank >= 1, f"{name}={rank} must be at least 1.")
        return {"head_dim": head_dim, **ranks}

    @classmethod
    def rotary_dim(cls, options: Options) -> int:
        """RoPE turns every b of queries and keys, and so whole queries and keys (§3.2, theorem 3.1)."""
        return options["head_dim"]

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Project, rotate, remember, attend from the factors or expand, project: see `Attention.forward`."""
        tables = position_embeddings if self.rotary else None
        query, num_new = self.factors(self.q_proj, hidden_states, tables), hidden_states.shape[1]
        key, value = self.factors(self.k_proj, hidden_states, tables), self.factors(self.v_proj, hidden_states, None)
        rows = [torch.cat(pair, dim=-1).flatten(2).unsqueeze(1) for pair in (key, value)]  # [B, 1, T, R·(H + D)]
        kept = [
            plain(part) for part in self.remember(cache, *rows, parts=(self.num_heads, self.head_dim) * self.kv_rank)
        ]
        if attention_mask is None and num_new > 1:
            kept = [part[:, :, :num_new] for part in kept]  # a prompt: the rest of a static cache is still empty
        key, value = (self.split(part.squeeze(1)) for part in kept)  # a [B, S, R, H] and b [B, S, R, D] of each
        scale = self.head_dim**-0.5
        if reads_factors(num_new, key[0].shape[1], attention_mask):
            attended = attend_factors(query, key, value, attention_mask, scale, attentions)
            return self.output(attended, hidden_states)
        query, key, value = (expanded(*pair) for pair in (query, key, value))  # [B, H, T or S, D]
        return self.output(attend(query, key, value, attention_mask, scale, attentions), hidden_states)

    def factors(self, projection: nn.Module, hidden_states: torch.Tensor, tables: Rotation) -> Factors:
        """Return the factors that a projection makes, b turned where there are cosines and sines."""
        a, b = self.split(project(projection, hidden_states))
        if tables is not None:
            b = rotate(b.transpose(1, 2), tables, self.rope_interleave).transpose(1, 2)
        return a / a.shape[2], b

    def split(self, rows: torch.Tensor) -> Factors:
        """Return a `[B, T, R, H]` and b `[B, T, R, D]` of rows `[B, T, R·(H + D)]`, as views."""
        pairs = rows.unflatten(-1, (-1, self.num_heads + self.head_dim))
        return pairs.split((self.num_heads, self.head_dim), dim=-1)

    def cache_parts(self) -> dict[str, int]:
        """(R_K + R_V)(H + d_h): the factors of keys and values."""
        return dict.fromkeys(("key factors", "value factors"), self.kv_rank * (self.num_heads + self.head_dim))

    def flops(self, num_tokens: int, context: int) -> int:
        """Projections, expansion of new queries and of the whole context, attention; see `Attention.flops`."""
        width = self.num_heads * self.head_dim
        attention = context * 2 * width
        expand = width * (num_tokens * self.q_rank + context * 2 * self.kv_rank)
        return 2 * (num_tokens * (self._factors() + attention) + expand) + self.output_flops(num_tokens)

    def decoding_flops(self, context: int) -> int:
        """Projections, products of b with b, weighing by the query's a, sum of the values' b; nothing is expanded."""
        scores = self.q_rank * (self.head_dim + self.num_heads)
        attention = context * self.kv_rank * (scores + self.num_heads * self.head_dim)
        return 2 * (self._factors() + attention) + self.output_flops(1)

    def _factors(self) -> int:
        """Multiply-adds of the three projections of a token to its factors."""
        return self.hidden_size * (self.q_rank + 2 * self.kv_rank) * (self.num_heads + self.head_dim)


def reads_factors(num_new: int, context: int, mask: torch.Tensor | None) -> bool:
    """Return whether to attend from the factors: a step of one new token, or of a few, as when guesses are checked."""
    return num_new == 1 or (mask is not None and num_new <= FEW_TOKENS and num_new < context)


def expanded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return Σ_r a_r ⊗ b_r, every head's own `[B, H, T, D]`, of factors `[B, T, R, H]` and `[B, T, R, D]`."""
    return (a.transpose(-1, -2) @ b).transpose(1, 2)
