"""Attention over keys and values, cached or new, and linear maps: tensors in, tensors out. Imports torch alone."""

from .latent import attend_latents
from .linear import Linear
from .sdpa import attend

__all__ = ["Linear", "attend", "attend_latents"]
