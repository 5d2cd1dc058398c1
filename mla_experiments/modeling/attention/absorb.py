"""The other way to compute MLA: attend in the latent space (DeepSeek-V2, §2.1.2, end), and when it is the cheaper one.

With W_i^UK and W_i^UV the up-projections of head i, the score of a cached token is (W_i^UKᵀ q_i^C) · c + q_i^R · k^R
and the output W_i^UV Σ p c: no key or value is ever made, and all heads read the same d_c + d_R numbers a token.
Where the latent is in parts (`gla.py`, `mlra.py`), so are the heads, and each part reads its own.
"""

from collections.abc import Iterable

import torch
from torch import nn

from ...errors import UserError
from ...kernels import Stored, attend_latents, attend_parts, weight_of
from .compress import LatentAttention

Ups = tuple[torch.Tensor, torch.Tensor]


def absorbed(
    query: torch.Tensor,
    latents: torch.Tensor | Stored,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return every head's output `[B, H, T, d_v]`.

    Args:
        query: `[B, H, T, d_nope + d_R]`, content, then the rotated part.
        latents: `[B, S, d_c + d_R]`, what the cache holds.
        w_uk: `[H, d_nope, d_c]`.
        w_uv: `[H, d_v, d_c]`.
        mask: see `kernels.attend_latents`.
        scale: factor on the scores.
        attentions: see `kernels.attend_latents`.
    """
    content, rank = w_uk.shape[1:]
    q_nope, q_rope = query.split((content, query.shape[-1] - content), dim=-1)
    folded = torch.cat((_per_head(q_nope, w_uk), q_rope), dim=-1)  # [B, H, T, d_c + d_R]
    mixed = attend_latents(folded, latents, rank, mask, scale, attentions)  # [B, H, T, d_c]
    return _per_head(mixed, w_uv.transpose(1, 2))


def absorbed_in_parts(
    query: torch.Tensor,
    latents: torch.Tensor | Stored,
    ups: list[Ups],
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the output `[B, P, R, T, d_v]` of R heads for each of P parts of the latent; others as in `absorbed`.

    Args:
        query: `[B, P, R, T, d_nope + d_R]`.
        latents: `[B, S, d_c + d_R]`; a part is d_c / P numbers of the first d_c.
        ups: W^UK `[R, d_nope, d_c / P]` and W^UV `[R, d_v, d_c / P]` of each part.
        mask: see there.
        scale: see there.
        attentions: see there; `[B, P·R, T, S]`.
    """
    content, rank = ups[0][0].shape[1:]
    q_nope, q_rope = query.split((content, query.shape[-1] - content), dim=-1)
    folded = [_per_head(part, w_uk) for part, (w_uk, _) in zip(q_nope.unbind(1), ups, strict=True)]
    folded = torch.cat((torch.stack(folded, dim=1), q_rope), dim=-1)  # [B, P, R, T, d_c / P + d_R]
    mixed = attend_parts(folded, latents, rank, mask, scale, attentions)  # [B, P, R, T, d_c / P]
    outputs = [_per_head(part, w_uv.transpose(1, 2)) for part, (_, w_uv) in zip(mixed.unbind(1), ups, strict=True)]
    return torch.stack(outputs, dim=1)


def up_projections(kv_b_proj: nn.Module, num_heads: int, content: int) -> Ups:
    """Return W^UK `[H, d_nope, d_c]` and W^UV `[H, d_v, d_c]`: views, which follow every change of the weight.

    Args:
        kv_b_proj: gives the keys and values of each head in turn.
        num_heads: H.
        content: d_nope.

    Raises:
        UserError: `kv_b_proj` is no longer a plain matrix.
    """
    weight = weight_of(kv_b_proj)
    if weight is None:
        raise UserError(
            f"decode_mode=absorb needs kv_b_proj as a plain matrix, but it is a {type(kv_b_proj).__name__} that "
            "something stands around; merge the adapter, or use decode_mode=auto"
        )
    per_head = weight.unflatten(0, (num_heads, -1))
    return per_head[:, :content], per_head[:, content:]


def _per_head(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`[B, H, T, D]` times `[H, D, E]`: one product a head, since broadcasting would copy the weights per sequence."""
    batch, _, num_new, _ = rows.shape
    product = rows.transpose(0, 1).flatten(1, 2) @ weight  # [H, B·T, E]
    return product.unflatten(1, (batch, num_new)).transpose(0, 1)


def absorbs(layer: LatentAttention, num_new: int, context: int, rank: int, ups: Iterable[nn.Module]) -> bool:
    """Return whether a layer is to attend in the latent space: as told, or where that is cheaper and can be done.

    What the up-projections multiply with must be known: not where they are quantised, or an adapter stands around one.

    Args:
        layer: of MLA's widths and of a `decode_mode`.
        num_new: see `is_cheaper_absorbed`.
        context: see there.
        rank: see there.
        ups: its up-projections.
    """
    if layer.decode_mode != "auto":
        return layer.decode_mode == "absorb"
    widths = (rank, layer.qk_nope_head_dim, layer.qk_rope_head_dim, layer.v_head_dim)
    return is_cheaper_absorbed(num_new, context, *widths) and all(weight_of(up) is not None for up in ups)


def is_cheaper_absorbed(num_new: int, context: int, rank: int, content: int, rotary: int, value: int) -> bool:
    """Return whether absorbing costs less than expanding, for T new among S tokens in all.

    In multiply-adds per head, expanding costs S · d_c · (d_nope + d_v) to make keys and values and
    T · S · (d_nope + d_R + d_v) to use them; absorbing costs T · d_c · (d_nope + d_v) to fold queries and unfold
    outputs and T · S · (2 d_c + d_R) in between. A prompt (T = S) is always expanded. `mla-experiments bench crossover`
    measures what the choice costs beside the better one.

    Args:
        num_new: T.
        context: S, the new tokens included.
        rank: d_c, of the part of the latent that a head reads.
        content: d_nope.
        rotary: d_R.
        value: d_v.
    """
    fold = rank * (content + value)
    expanding = context * fold + num_new * context * (content + rotary + value)
    absorbing = num_new * fold + num_new * context * (2 * rank + rotary)
    return num_new < context and absorbing < expanding
