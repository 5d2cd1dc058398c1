"""Held-out quality and cost of trained models."""

from .results import Results, evaluate_models, find_models, known_rows
from .task_results import evaluate_on_task, probe_models, task_asked_for

__all__ = [
    "Results", "evaluate_models", "evaluate_on_task", "find_models", "known_rows", "probe_models", "task_asked_for",
]  # fmt: skip
