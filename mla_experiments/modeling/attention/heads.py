"""Heads side by side, and one after another."""

import torch


def split_heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """`[B, T, H·D]` to `[B, H, T, D]`, D = width."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """`[B, H, T, D]` to `[B, T, H·D]`."""
    return x.transpose(1, 2).flatten(2)
