"""Attention over what is cached and new, linear maps and norms: tensors in, tensors out. Imports torch alone."""

from .attention import attend
from .factors import attend_factors
from .latent import attend_latents
from .linear import project
from .norm import normalise
from .parted import attend_parts
from .plain import weight_of
from .stored import Stored, plain

__all__ = [
    "Stored",
    "attend",
    "attend_factors",
    "attend_latents",
    "attend_parts",
    "normalise",
    "plain",
    "project",
    "weight_of",
]
