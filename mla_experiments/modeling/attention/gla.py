"""Grouped latent attention (Zadouri, Strauss & Dao 2025, Hardware-Efficient Attention for Fast Decoding, GLA).

As `mla.py`, but the latent is in n parts, and so are the heads: those of part g read c_g alone. Devices can then hold
a part each, where MLA's one latent must be on all of them. The rotary key is still one for all heads:

    c_g = RMSNorm(W_g^DKV h)         part g of the latent, d_c / n numbers, with a norm of its own
    k_i = [W_i^UK c_g; k^R],  k^R = RoPE(W^KR h)      key of head i, of part g = ⌊i · n / H⌋
    v_i = W_i^UV c_g
    o_i = Σ_s softmax_s(q_i · k_i,s / sqrt(d_nope + d_R)) v_i,s,    o = W^O [o_1; ...]

Queries are MLA's. Cached per token: all c_g and k^R, d_c + d_R numbers as in MLA. With n = 1 it is MLA.
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
    LATENT_NORM_EPS,
    LatentAttention,
    add_queries,
    expanded_in_parts,
    latent_options,
    latent_rows,
    queries,
    query_flops,
    remember_latents,
)
from .remember import Kept
from .rope import score_factor


class GLA(LatentAttention):
    """Grouped latent attention: n parts of the latent, each read by its own H / n heads."""

    description = "grouped latent attention"
    equation = "o_i = Σ_s softmax_s(q_i · [W_i^UK c_g,s; k_s^R] / √(d_nope + d_R)) W_i^UV c_g,s,  g = ⌊i · n / H⌋"
    cache_option = "kv_lora_rank"
    takes: ClassVar = frozenset({"output_gate", "attention_bias"})
    decode_modes = ("auto", "expand", "absorb")
    num_latent_groups: int

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        groups = range(self.num_latent_groups)
        self.part_rank = self.kv_lora_rank // self.num_latent_groups
        self.part_heads = self.num_heads // self.num_latent_groups
        self.scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * score_factor(self.rope_parameters)
        add_queries(self)
        self.kv_a_proj_with_mqa = self.linear(hidden_size, self.kv_lora_rank + self.qk_rope_head_dim)
        self.kv_a_layernorm = nn.ModuleList(nn.RMSNorm(self.part_rank, eps=LATENT_NORM_EPS) for _ in groups)
        expanded_width = self.part_heads * (self.qk_nope_head_dim + self.v_head_dim)
        self.kv_b_proj = nn.ModuleList(nn.Linear(self.part_rank, expanded_width, bias=False) for _ in groups)
        self.make_output(self.v_head_dim)

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        num_latent_groups: int | None = None,
        q_lora_rank: int | None = None,
        kv_lora_rank: int | None = None,
        qk_nope_head_dim: int | None = None,
        qk_rope_head_dim: int | None = None,
        v_head_dim: int | None = None,
    ) -> Options:
        """`num_latent_groups` is n (default: 2 where that divides the heads, else 1); others are MLA's."""
        options: Options = {
            "q_lora_rank": q_lora_rank, "kv_lora_rank": kv_lora_rank, "qk_nope_head_dim": qk_nope_head_dim,
            "qk_rope_head_dim": qk_rope_head_dim, "v_head_dim": v_head_dim,
        }  # fmt: skip
        options = latent_options(hidden_size, num_attention_heads, rotary, options)
        groups, rank = num_latent_groups, options["kv_lora_rank"]
        if groups is None:
            groups = 1 if num_attention_heads % 2 else 2  # an odd rank is refused: with one part this is MLA
        for name, whole in (("num_attention_heads", num_attention_heads), ("kv_lora_rank", rank)):
            require(
                groups >= 1 and whole % groups == 0,
                f"num_latent_groups={groups} does not divide {name}={whole}; choose a divisor of both.",
            )
        return {"num_latent_groups": groups, **options}

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
        """Compress, remember, expand or absorb, attend, project: see `Attention.forward`."""
        query = queries(self, hidden_states, position_embeddings)  # [B, H, T, d_nope + d_R]
        latent = latent_rows(self, hidden_states, position_embeddings, [*self.kv_a_layernorm])  # [B, 1, T, d_c + d_R]
        latents = remember_latents(self, cache, latent, attention_mask)  # [B, 1, S, d_c + d_R]
        if self.absorbs(latent.shape[2], latents.shape[2]):
            grouped = query.unflatten(1, (self.num_latent_groups, self.part_heads))  # [B, n, H/n, T, d_nope + d_R]
            ups = [up_projections(up, self.part_heads, self.qk_nope_head_dim) for up in self.kv_b_proj]
            attended = absorbed_in_parts(grouped, latents.squeeze(1), ups, attention_mask, self.scale, attentions)
            attended = attended.flatten(1, 2)
        else:
            key, value = self.expand(latents)  # [B, H, S, d_nope + d_R], [B, H, S, d_v]
            attended = attend(query, key, value, attention_mask, self.scale, attentions)  # [B, H, T, d_v]
        return self.output(attended, hidden_states)

    def absorbs(self, num_new: int, context: int) -> bool:
        """Return whether to attend in the latent space, see `absorb.absorbs`."""
        return absorbs(self, num_new, context, self.part_rank, self.kv_b_proj)

    def expand(self, latents: Kept) -> tuple[torch.Tensor, torch.Tensor]:
        """Return every head's key `[B, H, S, d_nope + d_R]` and value `[B, H, S, d_v]`, each from its own part."""
        return expanded_in_parts(self, self.kv_b_proj, plain(latents))

    def cache_parts(self) -> dict[str, int]:
        """d_c + d_R: the parts of the latent and one rotary key for all heads."""
        return {"latent": self.kv_lora_rank, "rotary key": self.qk_rope_head_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """As MLA's, but each head is expanded from its part of the latent alone; see `Attention.flops`."""
        compress = self.hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim)
        expand = self.part_rank * self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        attention = self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim)
        products = num_tokens * (query_flops(self) + compress + context * attention) + context * expand
        return 2 * products + self.output_flops(num_tokens)

    def decoding_flops(self, context: int) -> int:
        """Fold the query, attend to a part of the latents, unfold; see `Attention.decoding_flops`."""
        fold = self.part_rank * (self.qk_nope_head_dim + self.v_head_dim)
        scores = context * (2 * self.part_rank + self.qk_rope_head_dim)
        return self.flops(1, 0) + 2 * self.num_heads * (fold + scores)
