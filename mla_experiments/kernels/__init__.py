"""Attention over keys and values, cached or new: tensors in, tensors out. Imports torch alone."""

from .sdpa import attend

__all__ = ["attend"]
