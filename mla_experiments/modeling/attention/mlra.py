"""Multi-head low-rank attention (Liu et al. 2026, Multi-Head Low-Rank Attention, arXiv 2603.02188): MLRA-b.

As in `gla.py`, the latent is in parts, here b branches that devices can hold one each; but every head reads all of
them, with a softmax of its own in each, and sums what it has read. (MLA sums before: W_i^UK c = Σ_j W_j,i^UK c_j makes
one key of all branches.) The latent is MLA's, normed whole:

    [c_1; ...; c_b] = RMSNorm(W^DKV h)                     branch j of the latent, d_c / b numbers
    k_j,i = [W_j,i^UK c_j; k^R],  k^R = RoPE(W^KR h)       key of head i in branch j
    v_j,i = W_j,i^UV c_j
    o_i = b^(-1/2) Σ_j Σ_s softmax_s(q_i · k_j,i,s / sqrt(d_nope + d_R)) v_j,i,s,    o = W^O [o_1; ...]

The factor b^(-1/2) keeps the variance of a sum of b independent branches that of one. Queries are MLA's. Cached per
token: all c_j and k^R, d_c + d_R numbers as in MLA. With b = 1 it is MLA.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, plain
from .absorb import absorbed_in_parts, absorbs, up_projections
from .base import Options, Rotation
from .checks import require
from .compress import (
    LatentAttention,
    add_queries,
    expanded_in_parts,
    latent_norm,
    latent_options,
    latent_rows,
    queries,
    query_flops,
    remember_latents,
)
from .remember import Kept
from .rope import score_factor


class MLRA(LatentAttention):
    """Multi-head low-rank attention: b branches of the latent, each read by all heads, their outputs summed."""

    description = "multi-head low-rank attention"
    equation = "o_i = b^(-1/2) Σ_j Σ_s softmax_s(q_i · [W_j,i^UK c_j,s; k_s^R] / √(d_nope + d_R)) W_j,i^UV c_j,s"
    cache_option = "kv_lora_rank"
    takes: ClassVar = frozenset({"output_gate", "attention_bias"})
    decode_modes = ("auto", "expand", "absorb")
    num_branches: int

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        branches = range(self.num_branches)
        self.branch_rank = self.kv_lora_rank // self.num_branches
        self.softmaxes_per_head = self.num_branches
        self.scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * score_factor(self.rope_parameters)
        add_queries(self)
        self.kv_a_proj_with_mqa = self.linear(hidden_size, self.kv_lora_rank + self.qk_rope_head_dim)
        self.kv_a_layernorm = latent_norm(self, self.kv_lora_rank)
        expanded_width = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        self.kv_b_proj = nn.ModuleList(nn.Linear(self.branch_rank, expanded_width, bias=False) for _ in branches)
        self.make_output(self.v_head_dim)

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        num_branches: int | None = None,
        q_lora_rank: int | None = None,
        kv_lora_rank: int | None = None,
        qk_nope_head_dim: int | None = None,
        qk_rope_head_dim: int | None = None,
        v_head_dim: int | None = None,
    ) -> Options:
        """`num_branches` is b (default: 2); others are MLA's."""
        options: Options = {
            "q_lora_rank": q_lora_rank, "kv_lora_rank": kv_lora_rank, "qk_nope_head_dim": qk_nope_head_dim,
            "qk_rope_head_dim": qk_rope_head_dim, "v_head_dim": v_head_dim,
        }  # fmt: skip
        options = latent_options(hidden_size, num_attention_heads, rotary, options)
        rank = options["kv_lora_rank"]
        num_branches = 2 if num_branches is None else num_branches
        require(
            num_branches >= 1 and rank % num_branches == 0,
            f"num_branches={num_branches} does not divide kv_lora_rank={rank}; choose a divisor of the rank.",
        )
        return {"num_branches": num_branches, **options}

    @classmethod
    def rotary_dim(cls, options: Options) -> int:
        """RoPE turns only the shared rotary key."""
        return options["qk_rope_head_dim"]

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Compress, remember, expand or absorb, attend, project: see `Attention.forward`.

        A head has b softmaxes: the probabilities that `attentions` is given are `[B, b·H, T, S]`, branch by branch.
        """
        query = queries(self, hidden_states, position_embeddings)  # [B, H, T, d_nope + d_R]
        latent = latent_rows(self, hidden_states, position_embeddings, [self.kv_a_layernorm])  # [B, 1, T, d_c + d_R]
        latents = remember_latents(self, cache, latent, attention_mask)  # [B, 1, S, d_c + d_R]
        query = query.unsqueeze(1).expand(-1, self.num_branches, -1, -1, -1)  # [B, b, H, T, d_nope + d_R]
        if self.absorbs(latent.shape[2], latents.shape[2]):
            ups = [up_projections(up, self.num_heads, self.qk_nope_head_dim) for up in self.kv_b_proj]
            branches = absorbed_in_parts(query, latents.squeeze(1), ups, attention_mask, self.scale, attentions)
        else:
            key, value = self.expand(latents)  # [B, b·H, S, d_nope + d_R], [B, b·H, S, d_v]
            branches = attend(query.flatten(1, 2), key, value, attention_mask, self.scale, attentions)
            branches = branches.unflatten(1, (self.num_branches, -1))  # [B, b, H, T, d_v]
        return self.output(branches.sum(dim=1) * self.num_branches**-0.5, hidden_states)

    def absorbs(self, num_new: int, context: int) -> bool:
        """Return whether to attend in the latent space, see `absorb.absorbs`."""
        return absorbs(self, num_new, context, self.branch_rank, self.kv_b_proj)

    def expand(self, latents: Kept) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys `[B, b·H, S, d_nope + d_R]` and values `[B, b·H, S, d_v]` of all heads, branch by branch."""
        return expanded_in_parts(self, self.kv_b_proj, plain(latents))

    def cache_parts(self) -> dict[str, int]:
        """d_c + d_R: the branches of the latent and one rotary key for all heads."""
        return {"latent": self.kv_lora_rank, "rotary key": self.qk_rope_head_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """As MLA's, expansion too, but attention is computed b times; see `Attention.flops`."""
        compress = self.hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim)
        expand = self.kv_lora_rank * self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        widths = self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim
        attention = self.num_branches * self.num_heads * widths
        products = num_tokens * (query_flops(self) + compress + context * attention) + context * expand
        return 2 * products + self.output_flops(num_tokens)

    def decoding_flops(self, context: int) -> int:
        """Fold the query into each branch, attend to it, unfold; see `Attention.decoding_flops`."""
        fold = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        scores = context * (2 * self.kv_lora_rank + self.num_branches * self.qk_rope_head_dim)
        return self.flops(1, 0) + 2 * self.num_heads * (fold + scores)
