"""Held-out quality and cost of trained models."""

from .results import Results, evaluate_models, find_models, known_rows

__all__ = ["Results", "evaluate_models", "find_models", "known_rows"]
