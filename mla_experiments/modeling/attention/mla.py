"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, §2.1.2-2.1.3, eq. 9-19).

Unlike `mha.py`, keys and values are not kept: they are re-made from one low-rank latent a token. RoPE cannot pass
through that factorisation, so a small rotary key, shared by all heads, carries positions beside it ("decoupled"):

    c = RMSNorm(W^DKV h)             the latent, d_c numbers                             (eq. 9)
    k_i = [W_i^UK c; k^R],  k^R = RoPE(W^KR h)     key of head i: content and position   (eq. 10, 15-16)
    v_i = W_i^UV c                                                                      (eq. 11)
    q_i = [q_i^C; q_i^R],   q_i^R = RoPE(W_i^QR ·)  from h, or from a latent of its own   (eq. 12-14)
    o_i = Σ_s softmax_s(q_i · k_i,s / sqrt(d_nope + d_R)) v_i,s,    o = W^O [o_1; ...]    (eq. 17-19)

Cached per token: c and k^R, d_c + d_R numbers, whatever the number of heads. Names of weights and the order of
their rows are those of transformers' `DeepseekV3Attention`.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, plain
from .absorb import absorbed, absorbs, up_projections
from .base import Options, Rotation
from .compress import (
    LatentAttention,
    add_queries,
    expanded,
    latent_norm,
    latent_options,
    latent_rows,
    queries,
    query_flops,
    remember_latents,
)
from .rope import score_factor


class MLA(LatentAttention):
    """Multi-head latent attention with decoupled RoPE and full or low-rank queries."""

    full_variance: bool = False
    description = "multi-head latent attention"
    equation = "o_i = Σ_s softmax_s(q_i · [W_i^UK c_s; k_s^R] / √(d_nope + d_R)) W_i^UV c_s"
    cache_option = "kv_lora_rank"
    takes: ClassVar = frozenset({"output_gate", "attention_bias"})
    stock = "deepseek_v3"
    decode_modes = ("auto", "expand", "absorb", "full")

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs: Any):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        self.qk_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        self.scale = self.qk_head_dim**-0.5 * score_factor(self.rope_parameters)
        add_queries(self)
        self.kv_a_proj_with_mqa = self.linear(hidden_size, self.kv_lora_rank + self.qk_rope_head_dim)
        self.kv_a_layernorm = latent_norm(self, self.kv_lora_rank)
        expanded_width = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        self.kv_b_proj = nn.Linear(self.kv_lora_rank, expanded_width, bias=False)
        self.make_output(self.v_head_dim)

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        q_lora_rank: int | None = None,
        kv_lora_rank: int | None = None,
        qk_nope_head_dim: int | None = None,
        qk_rope_head_dim: int | None = None,
        v_head_dim: int | None = None,
        latent_scale: bool = False,
        latent_norm: bool = True,
        full_variance: bool = False,
    ) -> Options:
        """All derive from the size, see `compress.latent_options`; the last three change the latents, of queries too.

        These are returned only where they are not the default, as if they were not there: `latent_scale` and
        `latent_norm`, see `compress.latent_of`, and `full_variance`, see `init_weights`.
        """
        options = {
            "q_lora_rank": q_lora_rank, "kv_lora_rank": kv_lora_rank, "qk_nope_head_dim": qk_nope_head_dim,
            "qk_rope_head_dim": qk_rope_head_dim, "v_head_dim": v_head_dim,
        }  # fmt: skip
        changes = {"latent_scale": latent_scale, "latent_norm": latent_norm, "full_variance": full_variance}
        changed = {name: value for name, value in changes.items() if value not in (None, getattr(cls, name))}
        return latent_options(hidden_size, num_attention_heads, rotary, options) | changed

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
        latent = latent_rows(self, hidden_states, position_embeddings, [self.kv_a_layernorm])  # [B, 1, T, d_c + d_R]
        if self.decode_mode == "full":
            parts = (self.qk_nope_head_dim, self.qk_rope_head_dim) if self.rotary else ()
            key, value = self.remember(cache, *self.expand(latent), parts=parts, as_kept=True)
            attended = attend(query, key, value, attention_mask, self.scale, attentions)
            return self.output(attended, hidden_states)
        latents = remember_latents(self, cache, latent, attention_mask)  # [B, 1, S, d_c + d_R]
        if self.absorbs(latent.shape[2], latents.shape[2]):
            up = self.up_projections()
            attended = absorbed(query, latents.squeeze(1), *up, attention_mask, self.scale, attentions)
        else:
            key, value = self.expand(plain(latents))  # [B, H, S, d_nope + d_R], [B, H, S, d_v]
            attended = attend(query, key, value, attention_mask, self.scale, attentions)  # [B, H, T, d_v]
        return self.output(attended, hidden_states)

    def init_weights(self, std: float) -> None:
        """With `full_variance`, start projections up from latents so that what they make varies as a full matrix's.

        A full matrix of standard deviation σ makes D σ² of a normed hidden state. Of a latent of r numbers, each of
        variance 1 if normed and D σ² if not, and scaled, an up-projection must make as much.
        """
        if not self.full_variance:
            return
        queries_too = [] if self.q_lora_rank is None else [(self.q_b_proj, self.q_lora_rank)]
        for up, rank in [(self.kv_b_proj, self.kv_lora_rank), *queries_too]:
            wider = (self.hidden_size / rank) ** 0.5
            of_latent = (1 if self.latent_norm else std * self.hidden_size**0.5) * (wider if self.latent_scale else 1)
            up.weight.mul_(wider / of_latent)

    def absorbs(self, num_new: int, context: int) -> bool:
        """Return whether to attend in the latent space, see `absorb.absorbs`."""
        return absorbs(self, num_new, context, self.kv_lora_rank, [self.kv_b_proj])

    def up_projections(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return W^UK `[H, d_nope, d_c]` and W^UV `[H, d_v, d_c]`, see `absorb.up_projections`."""
        return up_projections(self.kv_b_proj, self.num_heads, self.qk_nope_head_dim)

    def expand(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return every head's key `[B, H, S, d_nope + d_R]` and value `[B, H, S, d_v]` from the latents."""
        c_kv, k_rope = latent.split((self.kv_lora_rank, self.qk_rope_head_dim), dim=-1)
        return expanded(self.kv_b_proj, c_kv, k_rope, self.qk_nope_head_dim, self.v_head_dim)

    def cache_parts(self) -> dict[str, int]:
        """d_c + d_R: the latent and one rotary key, for all heads together."""
        return {"latent": self.kv_lora_rank, "rotary key": self.qk_rope_head_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """Projections of the new tokens, expansion of the whole context, attention; see `Attention.flops`."""
        compress = self.hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim)
        expand = self.kv_lora_rank * self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        attention = self.num_heads * (self.qk_head_dim + self.v_head_dim)
        products = num_tokens * (query_flops(self) + compress + context * attention) + context * expand
        return 2 * products + self.output_flops(num_tokens)

    def decoding_flops(self, context: int) -> int:
        """Fold the query, attend to the latents, unfold: nothing is expanded; see `Attention.decoding_flops`."""
        fold = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        scores = context * (2 * self.kv_lora_rank + self.qk_rope_head_dim)
        return self.flops(1, 0) + 2 * self.num_heads * (fold + scores)
