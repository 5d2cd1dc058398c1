"""Fair comparisons: matched variants over seeds and learning rates, and how sure their differences are."""

from .description import Study, read_study
from .forecast import study_plan
from .runner import run_study, shard_of

__all__ = ["Study", "read_study", "run_study", "shard_of", "study_plan"]
