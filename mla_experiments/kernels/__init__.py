"""Attention over keys and values, cached or new: tensors in, tensors out. Imports torch alone."""

from .latent import attend_latents
from .sdpa import attend

__all__ = ["attend", "attend_latents"]
