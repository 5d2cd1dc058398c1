"""Softmax attention written out, for those who want to see its probabilities: scores lie in memory whole."""

import torch


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output `[B, H, T, Dv]` and the probabilities `[B, H, T, S]`; arguments are those of `sdpa.attend`."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scores = query @ key.transpose(-1, -2) * scale  # [B, H, T, S]
    num_new, context = scores.shape[-2:]
    if mask is None and num_new > 1:
        mask = torch.ones(num_new, context, dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    probabilities = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return probabilities @ value, probabilities
