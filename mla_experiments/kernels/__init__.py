"""Attention over what is cached and new, linear maps and norms: tensors in, tensors out. Imports torch alone."""

from .attention import attend
from .factors import attend_factors
from .latent import attend_latents
from .linear import PackedLinear, project
from .norm import normalise
from .parted import attend_parts
from .plain import stands_alone, weight_of
from .stored import Stored, plain
from .turned import attend_turned, turned

__all__ = [
    "PackedLinear",
    "Stored",
    "attend",
    "attend_factors",
    "attend_latents",
    "attend_parts",
    "attend_turned",
    "normalise",
    "plain",
    "project",
    "stands_alone",
    "turned",
    "weight_of",
]
