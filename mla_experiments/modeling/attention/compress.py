"""What MLA, GLA and MLRA share: their options, full or low-rank queries, and one compressed row a token.

Names of weights and the order of their rows are those of transformers' `DeepseekV3Attention`.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...kernels import normalise, project
from .base import Attention, Options, Rotation
from .checks import head_width, require
from .heads import split_heads
from .remember import Kept, remember_state
from .rope import rotate

LATENT_NORM_EPS = 1e-6  # DeepSeek's latent norms keep this whatever the block's norms use


class LatentAttention(Attention):
    """What MLA, GLA and MLRA have in common for the functions below: widths, queries and the way to the latent."""

    as_matrices = frozenset({"kv_b_proj"})  # absorbed
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    latent_scale: bool = False
    latent_norm: bool = True
    q_proj: nn.Linear
    q_a_proj: nn.Linear
    q_a_layernorm: nn.Module | None
    q_b_proj: nn.Linear
    kv_a_proj_with_mqa: nn.Linear


def latent_options(hidden_size: int, num_attention_heads: int, rotary: bool, options: Options) -> Options:
    """Return MLA's options, complete: defaults are DeepSeek-V2's proportions (§2.1.4), d_c = 4 d_h and d_R = d_h / 2.

    Args:
        hidden_size: width of the decoder; d_h = width / heads.
        num_attention_heads: see there.
        rotary: whether there is a rotary key.
        options: `kv_lora_rank` is d_c, `qk_rope_head_dim` d_R (0 without RoPE), `qk_nope_head_dim` and `v_head_dim` the
            content widths of a head's key and value (d_h), `q_lora_rank` the rank of the queries, None for full ones.

    Raises:
        UserError: a value that cannot work.
    """
    width = head_width(hidden_size, num_attention_heads)
    derived = {
        "kv_lora_rank": 4 * width,
        "qk_nope_head_dim": width,
        "qk_rope_head_dim": max(2, width // 4 * 2) if rotary else 0,
        "v_head_dim": width,
    }
    options = options | {name: value for name, value in derived.items() if options[name] is None}
    for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
        require(options[name] is None or options[name] >= 1, f"{name}={options[name]} must be at least 1.")
    d_rope = options["qk_rope_head_dim"]
    if rotary:
        require(d_rope >= 2 and d_rope % 2 == 0, f"qk_rope_head_dim={d_rope} must be positive and even.")
    else:
        require(d_rope == 0, f"qk_rope_head_dim={d_rope} must be 0 without RoPE.")
    return options


def add_queries(layer: LatentAttention) -> None:
    """Give a layer the projections of its queries: one, or two around a normed latent of `q_lora_rank` numbers."""
    query_width = layer.num_heads * (layer.qk_nope_head_dim + layer.qk_rope_head_dim)
    if layer.q_lora_rank is None:
        layer.q_proj = layer.linear(layer.hidden_size, query_width)
    else:
        layer.q_a_proj = layer.linear(layer.hidden_size, layer.q_lora_rank)
        layer.q_a_layernorm = latent_norm(layer, layer.q_lora_rank)
        layer.q_b_proj = nn.Linear(layer.q_lora_rank, query_width, bias=False)


def latent_norm(layer: LatentAttention, width: int) -> nn.Module | None:
    """Return the norm of a latent, or of a part of it, where `latent_norm` says so."""
    return nn.RMSNorm(width, eps=LATENT_NORM_EPS) if layer.latent_norm else None


def latent_of(layer: LatentAttention, compressed: torch.Tensor, norm: nn.Module | None, rank: int) -> torch.Tensor:
    """Return what was compressed, normed and scaled as far as the layer's options say.

    The scale is √(width / rank), as in LongCat-Flash (Meituan 2025, arXiv 2509.01322, scale correction of MLA).

    Args:
        layer: of `latent_scale` and `latent_norm`.
        compressed: `[..., d]`, a latent or a part of it.
        norm: of it, if there is one.
        rank: of the whole latent.
    """
    latent = compressed if norm is None else normalise(norm, compressed)
    return latent * (layer.hidden_size / rank) ** 0.5 if layer.latent_scale else latent


def queries(layer: LatentAttention, hidden_states: torch.Tensor, position_embeddings: Rotation) -> torch.Tensor:
    """Return `[B, H, T, d_nope + d_R]`: content, then the rotated part (DeepSeek-V2, eq. 12-14)."""
    if layer.q_lora_rank is None:
        flat = project(layer.q_proj, hidden_states)
    else:
        latent = latent_of(layer, project(layer.q_a_proj, hidden_states), layer.q_a_layernorm, layer.q_lora_rank)
        flat = project(layer.q_b_proj, latent)
    query = split_heads(flat, layer.qk_nope_head_dim + layer.qk_rope_head_dim)
    if not layer.rotary:
        return query
    q_nope, q_rope = query.split((layer.qk_nope_head_dim, layer.qk_rope_head_dim), dim=-1)
    return torch.cat((q_nope, rotate(q_rope, position_embeddings, layer.rope_interleave)), dim=-1)


def query_flops(layer: LatentAttention) -> int:
    """Return the multiply-adds of a token's queries."""
    query_width = layer.num_heads * (layer.qk_nope_head_dim + layer.qk_rope_head_dim)
    if layer.q_lora_rank is None:
        return layer.hidden_size * query_width
    return layer.q_lora_rank * (layer.hidden_size + query_width)


def latent_rows(
    layer: LatentAttention, hidden_states: torch.Tensor, position_embeddings: Rotation, norms: list[nn.Module | None]
) -> torch.Tensor:
    """Return what is cached, `[B, 1, T, d_c + d_R]`: the latent, normed in as many parts as norms, and the rotated key.

    Args:
        layer: has `kv_a_proj_with_mqa`.
        hidden_states: `[B, T, D]`.
        position_embeddings: see `Attention.forward`.
        norms: of the parts of the latent, in their order.
    """
    compressed = project(layer.kv_a_proj_with_mqa, hidden_states).unsqueeze(1)
    c_kv, k_rope = compressed.split((layer.kv_lora_rank, layer.qk_rope_head_dim), dim=-1)
    chunks = c_kv.chunk(len(norms), dim=-1) if len(norms) > 1 else (c_kv,)
    parts = [latent_of(layer, part, norm, layer.kv_lora_rank) for part, norm in zip(chunks, norms, strict=True)]
    if layer.rotary:
        parts.append(rotate(k_rope, position_embeddings, layer.rope_interleave))
    return torch.cat(parts, dim=-1)


def remember_latents(
    layer: LatentAttention, cache: Cache | None, rows: torch.Tensor, mask: torch.Tensor | None
) -> Kept:
    """Append what `latent_rows` made to a layer's cache, and return all that is kept; see `remember.remember_state`."""
    parts = (layer.kv_lora_rank, layer.qk_rope_head_dim) if layer.rotary else ()
    return remember_state(cache, layer.layer_idx, rows, mask, parts, as_kept=True)


def expanded_in_parts(
    layer: LatentAttention, ups: nn.ModuleList, latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys `[B, X, S, d_nope + d_R]` and values `[B, X, S, d_v]` of all heads, part by part of the latent.

    Args:
        layer: of MLA's widths.
        ups: a projection for each part.
        latents: `[B, 1, S, d_c + d_R]`.
    """
    c_kv, k_rope = latents.split((layer.kv_lora_rank, layer.qk_rope_head_dim), dim=-1)
    parts = zip(ups, c_kv.chunk(len(ups), dim=-1), strict=True)
    widths = (layer.qk_nope_head_dim, layer.v_head_dim)
    keys, values = zip(*(expanded(up, part, k_rope, *widths) for up, part in parts), strict=True)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def expanded(
    kv_b_proj: nn.Module, c_kv: torch.Tensor, k_rope: torch.Tensor, content: int, value: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the key `[B, R, S, d_nope + d_R]` and value `[B, R, S, d_v]` of every head that reads a latent.

    Args:
        kv_b_proj: gives the content of keys, and values, of each head in turn.
        c_kv: `[B, 1, S, d]`, the latent or a part of it.
        k_rope: `[B, 1, S, d_R]`.
        content: d_nope.
        value: d_v.
    """
    per_head = split_heads(project(kv_b_proj, c_kv.squeeze(1)), content + value)  # [B, R, S, d_nope + d_v]
    k_nope, values = per_head.split((content, value), dim=-1)
    key = torch.cat((k_nope, k_rope.expand(-1, per_head.shape[1], -1, -1)), dim=-1)
    return key, values
