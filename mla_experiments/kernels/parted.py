"""Attention over a cached row in parts: each group of heads reads its own part, and all read one tail (a rotary key).

    row of a token  [x_1; ...; x_P; tail]      head of part p: key [x_p[:K]; tail], value x_p

The attention in C reads parts where they lie. Everything else knows only whole rows: there the heads of all parts
attend to the whole row with queries that are zero outside of what they may read. That is exact, reads the cache once,
copies none of it, and costs P times the arithmetic; in C no time, where the heads of a part are so few that P parts
fit into one vector.
"""

import torch
from torch.nn import functional as F

from . import latent, shared_keys
from .stored import Stored

SOFTMAX = 48  # what a score's exponential costs in C, in multiply-adds


def attend_parts(
    query: torch.Tensor,
    rows: torch.Tensor | Stored,
    value_width: int,
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query [x_p[:K]; tail]ᵀ + mask) x_p, `[B, P, R, T, V]`.

    Args:
        query: `[B, P, R, T, K + tail]`, K <= V: R heads for each of P parts.
        rows: `[B, S, P · V + tail]`, what the cache holds; or as it keeps them.
        value_width: V.
        mask: see `latent.attend_latents`.
        scale: factor on the scores before the softmax.
        attentions: where given, the probabilities `[B, P·R, T, S]` are appended to it.
    """
    num_parts = query.shape[1]
    whole = num_parts * value_width
    tail = rows.shape[-1] - whole
    if num_parts == 1 and query.shape[-1] == rows.shape[-1]:
        return latent.attend_latents(query.squeeze(1), rows, whole, mask, scale, attentions).unsqueeze(1)
    if isinstance(rows, Stored):
        if attentions is None and latent.reads_stored(query.flatten(1, 2), rows, mask):
            widths = (query.shape[-1] - tail, tail, value_width)
            output = shared_keys.attend_kept(
                query.flatten(1, 2), rows.unsqueeze(1), None, num_parts, widths, mask, scale
            )
            return output.unflatten(1, (num_parts, -1))
        rows = rows.plain()
    if attentions is None and _pays_in_c(query, rows, value_width, mask):
        parts = rows[..., :whole].unflatten(-1, (num_parts, value_width)).transpose(1, 2)  # [B, P, S, V]
        key = parts[..., : query.shape[-1] - tail]
        output = shared_keys.attend(query.flatten(1, 2), key, parts, mask, scale, rows[..., whole:])
        return output.unflatten(1, (num_parts, -1))
    mixed = latent.attend_latents(_spread(query, value_width, tail), rows, whole, mask, scale, attentions)
    mixed = mixed.unflatten(-1, (num_parts, value_width)).unflatten(1, (num_parts, -1))  # [B, P, R, T, P, V]
    return mixed.diagonal(dim1=1, dim2=4).movedim(-1, 1)


def _spread(query: torch.Tensor, value_width: int, tail: int) -> torch.Tensor:
    """`[B, P, R, T, K + tail]` to `[B, P·R, T, P·V + tail]`, zero where the row holds what another part reads."""
    width = query.shape[-1] - tail
    own, end = query.split((width, tail), dim=-1)
    own = F.pad(own, (0, value_width - width)).movedim(1, -1)  # [B, R, T, V, P]
    wide = torch.diag_embed(own, dim1=1, dim2=-2).flatten(-2)  # [B, P, R, T, P·V]
    return torch.cat((wide, end), dim=-1).flatten(1, 2)


def _pays_in_c(query: torch.Tensor, rows: torch.Tensor, value_width: int, mask: torch.Tensor | None) -> bool:
    """Whether parts in C are served, and cost less than whole rows, whose vectors are fuller."""
    if latent.forced() not in (None, "c") or torch.compiler.is_compiling() or shared_keys.why_not_here():
        return False
    _, num_parts, heads, num_new, width = query.shape
    parted = num_parts * shared_keys.lanes_for(heads * num_new) * (width + value_width + SOFTMAX)
    all_rows = num_parts * heads * num_new
    lanes = min(shared_keys.lanes_for(all_rows), all_rows / shared_keys.FULL_ENOUGH)  # else they are PyTorch's
    if parted > lanes * (rows.shape[-1] + num_parts * value_width + SOFTMAX):
        return False
    prompt = mask is None and num_new > 1
    return not prompt and shared_keys.why_not(query, rows, rows, mask) is None
