"""Figures and tables made from run folders."""

from .curves import draw_curves
from .model_card import write_model_card

__all__ = ["draw_curves", "write_model_card"]
