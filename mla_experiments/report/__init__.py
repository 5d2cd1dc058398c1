"""Figures and tables made from run folders."""

from .curves import draw_curves

__all__ = ["draw_curves"]
