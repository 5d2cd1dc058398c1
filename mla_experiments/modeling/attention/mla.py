"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, §2.1.2-2.1.3, eq. 9-19).

Unlike `mha.py`, keys and values are not kept: they are re-made from one low-rank latent a token. RoPE cannot pass
through that factorisation, so a small rotary key, shared by all heads, carries positions beside it ("decoupled"):

    c = RMSNorm(W^DKV h)             the latent, d_c numbers                             (eq. 9)
    k_i = [W_i^UK c; k^R],  k^R = RoPE(W^KR h)     key of head i: content and position   (eq. 10, 15-16)
    v_i = W_i^UV c                                                                      (eq. 11)
    q_i = [q_i^C; q_i^R],   q_i^R = RoPE(W_i^QR ·)  from h, or from a latent of its own   (eq. 12-14)
    o_i = Σ_s softmax_s(q_i · k_i,s / sqrt(d_nope + d_R)) v_i,s,    o = W^O [o_1; ...]    (eq. 17-19)

Cached per token: c and k^R, d_c + d_R numbers, whatever the number of heads. Names of weights and the order of
their rows are those of transformers' `DeepseekV3Attention`. Two options change the latents, of queries too: scaled by
√(width / rank), as in LongCat-Flash (Meituan 2025, arXiv 2509.01322, scale correction of MLA), and without a norm.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import attend, project, weight_of
from .absorb import absorbed, is_cheaper_absorbed
from .base import Attention, Rotation
from .checks import head_width, require
from .heads import split_heads
from .rope import rotate, score_factor

LATENT_NORM_EPS = 1e-6  # DeepSeek's latent norms keep this whatever the block's norms use


class MLA(Attention):
    """Multi-head latent attention with decoupled RoPE and full or low-rank queries."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    latent_scale: bool = False
    latent_norm: bool = True
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
        query_width = self.num_heads * self.qk_head_dim
        if self.q_lora_rank is None:
            self.q_proj = self.linear(hidden_size, query_width)
        else:
            self.q_a_proj = self.linear(hidden_size, self.q_lora_rank)
            self.q_a_layernorm = nn.RMSNorm(self.q_lora_rank, eps=LATENT_NORM_EPS) if self.latent_norm else None
            self.q_b_proj = nn.Linear(self.q_lora_rank, query_width, bias=False)
        self.kv_a_proj_with_mqa = self.linear(hidden_size, self.kv_lora_rank + self.qk_rope_head_dim)
        self.kv_a_layernorm = nn.RMSNorm(self.kv_lora_rank, eps=LATENT_NORM_EPS) if self.latent_norm else None
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
    ) -> dict[str, int | None]:
        """Defaults are DeepSeek-V2's proportions (§2.1.4): d_c = 4 d_h and d_R = d_h / 2, with d_h = width / heads.

        `kv_lora_rank` is d_c, `qk_rope_head_dim` d_R (0 without RoPE), `qk_nope_head_dim` and `v_head_dim` the
        content widths of a head's key and value (d_h), `q_lora_rank` the rank of the queries, None for full ones.
        `latent_scale` and `latent_norm` are returned only where they are not the default, as if they were not there.
        """
        options = {
            "q_lora_rank": q_lora_rank, "kv_lora_rank": kv_lora_rank, "qk_nope_head_dim": qk_nope_head_dim,
            "qk_rope_head_dim": qk_rope_head_dim, "v_head_dim": v_head_dim,
        }  # fmt: skip
        width = head_width(hidden_size, num_attention_heads)
        derived = {
            "kv_lora_rank": 4 * width,
            "qk_nope_head_dim": width,
            "qk_rope_head_dim": max(2, width // 4 * 2) if rotary else 0,
            "v_head_dim": width,
        }
        options |= {name: value for name, value in derived.items() if options[name] is None}
        for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            require(options[name] is None or options[name] >= 1, f"{name}={options[name]} must be at least 1.")
        d_rope = options["qk_rope_head_dim"]
        if rotary:
            require(d_rope >= 2 and d_rope % 2 == 0, f"qk_rope_head_dim={d_rope} must be positive and even.")
        else:
            require(d_rope == 0, f'qk_rope_head_dim={d_rope} must be 0 with positions="learned".')
        changes = {"latent_scale": latent_scale, "latent_norm": latent_norm}
        return options | {name: value for name, value in changes.items() if value not in (None, getattr(cls, name))}

    @classmethod
    def rotary_dim(cls, options: dict[str, int | None]) -> int:
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
        query = self.queries(hidden_states, position_embeddings)  # [B, H, T, d_nope + d_R]
        latent = self.latents(hidden_states, position_embeddings)  # [B, 1, T, d_c + d_R]
        if self.decode_mode == "full":
            key, value = self.remember(cache, *self.expand(latent))
            attended = attend(query, key, value, attention_mask, self.scale, attentions)
            return self.output(attended, hidden_states)
        # The latent is all that is kept: it fills the cache's keys, and its values are of width 0.
        latents, _ = self.remember(cache, latent, latent[..., :0])  # [B, 1, S, d_c + d_R]
        if attention_mask is None and latent.shape[2] > 1:
            latents = latents[:, :, : latent.shape[2]]  # a prompt: the rest of a static cache is still empty
        if self.absorbs(latent.shape[2], latents.shape[2]):
            up = self.up_projections()
            attended = absorbed(query, latents.squeeze(1), *up, attention_mask, self.scale, attentions)
        else:
            key, value = self.expand(latents)  # [B, H, S, d_nope + d_R], [B, H, S, d_v]
            attended = attend(query, key, value, attention_mask, self.scale, attentions)  # [B, H, T, d_v]
        return self.output(attended, hidden_states)

    def absorbs(self, num_new: int, context: int) -> bool:
        """Return whether to attend in the latent space: as told, or where that is cheaper and can be done.

        What `kv_b_proj` multiplies with must be known: not where it is quantised, or an adapter stands around it.
        """
        if self.decode_mode != "auto":
            return self.decode_mode == "absorb"
        widths = (self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim)
        return is_cheaper_absorbed(num_new, context, *widths) and weight_of(self.kv_b_proj) is not None

    def up_projections(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return W^UK `[H, d_nope, d_c]` and W^UV `[H, d_v, d_c]`: views, which follow every change of the weight.

        Raises:
            UserError: `kv_b_proj` is no longer a plain matrix.
        """
        weight = weight_of(self.kv_b_proj)
        require(
            weight is not None,
            f"decode_mode=absorb needs kv_b_proj as a plain matrix, but it is a {type(self.kv_b_proj).__name__} that "
            "something stands around; merge the adapter, or use decode_mode=auto",
        )
        per_head = weight.unflatten(0, (self.num_heads, -1))
        return per_head.split((self.qk_nope_head_dim, self.v_head_dim), dim=1)

    def queries(self, hidden_states: torch.Tensor, position_embeddings: Rotation) -> torch.Tensor:
        """Return `[B, H, T, d_nope + d_R]`: content, then the rotated part."""
        if self.q_lora_rank is None:
            flat = project(self.q_proj, hidden_states)
        else:
            flat = project(self.q_b_proj, self.latent_of(project(self.q_a_proj, hidden_states), self.q_a_layernorm))
        query = split_heads(flat, self.qk_head_dim)
        if not self.rotary:
            return query
        q_nope, q_rope = query.split((self.qk_nope_head_dim, self.qk_rope_head_dim), dim=-1)
        return torch.cat((q_nope, rotate(q_rope, position_embeddings, self.rope_interleave)), dim=-1)

    def latent_of(self, compressed: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """Return a latent `[B, T, rank]`: what was compressed, normalised and scaled as far as the options say."""
        latent = compressed if norm is None else norm(compressed)
        return latent * (self.hidden_size / latent.shape[-1]) ** 0.5 if self.latent_scale else latent

    def latents(self, hidden_states: torch.Tensor, position_embeddings: Rotation) -> torch.Tensor:
        """Return what is cached, `[B, 1, T, d_c + d_R]`: the latent, then the rotated shared key."""
        compressed = project(self.kv_a_proj_with_mqa, hidden_states)
        c_kv, k_rope = compressed.split((self.kv_lora_rank, self.qk_rope_head_dim), dim=-1)
        c_kv = self.latent_of(c_kv, self.kv_a_layernorm).unsqueeze(1)
        if not self.rotary:
            return c_kv
        k_rope = rotate(k_rope.unsqueeze(1), position_embeddings, self.rope_interleave)
        return torch.cat((c_kv, k_rope), dim=-1)

    def expand(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return every head's key `[B, H, S, d_nope + d_R]` and value `[B, H, S, d_v]` from the latents."""
        c_kv, k_rope = latent.split((self.kv_lora_rank, self.qk_rope_head_dim), dim=-1)
        content = split_heads(project(self.kv_b_proj, c_kv.squeeze(1)), self.qk_nope_head_dim + self.v_head_dim)
        k_nope, value = content.split((self.qk_nope_head_dim, self.v_head_dim), dim=-1)
        key = torch.cat((k_nope, k_rope.expand(-1, self.num_heads, -1, -1)), dim=-1)
        return key, value

    def cache_parts(self) -> dict[str, int]:
        """d_c + d_R: the latent and one rotary key, for all heads together."""
        return {"latent": self.kv_lora_rank, "rotary key": self.qk_rope_head_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """Projections of the new tokens, expansion of the whole context, attention; see `Attention.flops`."""
        query_width = self.num_heads * self.qk_head_dim
        if self.q_lora_rank is None:
            queries = self.hidden_size * query_width
        else:
            queries = self.q_lora_rank * (self.hidden_size + query_width)
        compress = self.hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim)
        expand = self.kv_lora_rank * self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        attention = self.num_heads * (self.qk_head_dim + self.v_head_dim)
        products = num_tokens * (queries + compress + context * attention) + context * expand
        return 2 * products + self.output_flops(num_tokens)

    def decoding_flops(self, context: int) -> int:
        """Fold the query, attend to the latents, unfold: nothing is expanded; see `Attention.decoding_flops`."""
        fold = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        scores = context * (2 * self.kv_lora_rank + self.qk_rope_head_dim)
        return self.flops(1, 0) + 2 * self.num_heads * (fold + scores)
