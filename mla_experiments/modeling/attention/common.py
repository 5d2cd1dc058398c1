"""Options that are common to mechanisms, each in one place: biases, norms of queries and keys, a gate on what is read.

A chapter that follows them makes its layers by these moves and calls them where it computes; `Attention.takes` says so.
"""

import torch
from torch import nn

from ...kernels import normalise, project
from .heads import merge_heads, split_heads


class CommonOptions:
    """The part of `base.Attention` that follows `output_gate`, `qk_norm` and `attention_bias`."""

    hidden_size: int
    num_heads: int
    softmaxes_per_head: int
    rms_norm_eps: float
    output_gate: str | None
    qk_norm: bool | str
    attention_bias: bool
    q_norm: nn.Module
    k_norm: nn.Module

    def linear(self, in_features: int, out_features: int) -> nn.Linear:
        """Return a projection of the hidden states, with a bias where `attention_bias` says so (as in Qwen2)."""
        return nn.Linear(in_features, out_features, bias=self.attention_bias)

    def make_norms(self, width: int, key_heads: int) -> None:
        """Make the norms of queries and keys, where `qk_norm` says so.

        Args:
            width: of a head of both.
            key_heads: how many keys a token has; norms of all heads together are of the width of all queries, or keys.
        """
        if self.qk_norm:
            queries = self.num_heads * self.softmaxes_per_head
            query_heads, key_heads = (queries, key_heads) if self.qk_norm == "whole" else (1, 1)
            self.q_norm = nn.RMSNorm(query_heads * width, eps=self.rms_norm_eps)
            self.k_norm = nn.RMSNorm(key_heads * width, eps=self.rms_norm_eps)

    def normed(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Norm queries `[B, H, T, D]` and keys `[B, G, T, D]`, where `qk_norm` says so.

        Each head alone (as in Qwen3), or with "whole" all heads of a token together (as in OLMo 2).
        """
        if self.qk_norm == "whole":
            wide = normalise(self.q_norm, merge_heads(query)), normalise(self.k_norm, merge_heads(key))  # [B, T, H·D]
            return split_heads(wide[0], query.shape[-1]), split_heads(wide[1], key.shape[-1])
        return (normalise(self.q_norm, query), normalise(self.k_norm, key)) if self.qk_norm else (query, key)

    def make_output(self, width: int) -> None:
        """Make the projection of what the heads have read, and its gate where `output_gate` says so.

        Args:
            width: of what one head reads, Dv.
        """
        self.o_proj = nn.Linear(self.num_heads * width, self.hidden_size, bias=False)
        if self.output_gate:
            gates = self.num_heads * (width if self.output_gate == "element" else 1)
            self.gate_proj = nn.Linear(self.hidden_size, gates, bias=False)

    def output(self, attended: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Gate what the heads have read, put it side by side and project it: `[B, H, T, Dv]` to `[B, T, D]`.

        The gate is Qiu et al.'s (2025, Gated Attention, §2.2): o_i ← σ(W_i^G h) ⊙ o_i, a number for each element of
        what a head reads, or for each head.
        """
        if self.output_gate:
            gate = project(self.gate_proj, hidden_states).sigmoid()  # [B, T, H·Dv or H]
            attended = attended * split_heads(gate, gate.shape[-1] // self.num_heads)
        return project(self.o_proj, merge_heads(attended))

    def output_flops(self, num_tokens: int) -> int:
        """Return the FLOPs of the projection of what the heads have read, and of its gate."""
        gates = self.gate_proj.weight.numel() if self.output_gate else 0
        return 2 * num_tokens * (self.o_proj.weight.numel() + gates)
