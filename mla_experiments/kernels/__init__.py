"""Attention over keys and values, cached or new, and linear maps: tensors in, tensors out. Imports torch alone."""

from .attention import attend
from .latent import attend_latents
from .linear import Linear

__all__ = ["Linear", "attend", "attend_latents"]
