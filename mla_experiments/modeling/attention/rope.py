"""Rotary position embeddings (Su et al. 2021, RoFormer, §3.2.2, eq. 14-15), in both layouts in use.

A rotary dimension d holds d/2 pairs; pair i of a token at position p turns by the angle p · theta^(-2i/d). Which
two numbers form a pair is a matter of layout: `half_split` (Llama) pairs i with i + d/2, `interleaved` (RoFormer,
DeepSeek) pairs 2i with 2i + 1. Scores depend on the layout, so a checkpoint must be read in its own.
"""

import torch
from torch import nn


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotation angles, made once per forward pass and shared by all layers."""

    def __init__(self, dim: int, theta: float):
        super().__init__()
        self.dim, self.theta = dim, theta
        self.inv_freq = nn.Buffer(self.inverse_frequencies(), persistent=False)  # [dim / 2]

    def inverse_frequencies(self) -> torch.Tensor:
        """Return the angle per position of every pair, `[dim / 2]` in radians."""
        return self.theta ** (-torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)

    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, each `[B, T, dim / 2]`, for positions `[B, T]`; angles are taken in f32."""
        angles = position_ids[..., None].float() * self.inv_freq.float()
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], interleaved: bool) -> torch.Tensor:
    """Turn every pair of `x` `[B, H, T, D]` by its angle; cosines and sines are `[B or 1, T, D / 2]`.

    The result is half-split in either layout: queries and keys are permuted alike, so their products are the same.
    """
    cos, sin = (table.unsqueeze(1) for table in position_embeddings)  # [B, 1, T, D / 2]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
