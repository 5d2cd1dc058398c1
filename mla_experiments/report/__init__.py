"""Figures and tables made from run folders."""

from .curves import Redrawing, draw_curves
from .model_card import write_model_card

__all__ = ["Redrawing", "draw_curves", "write_model_card"]
