"""Training runs: one per attention mechanism, each a resumable folder under `weights/`."""

from .run import train
from .settings import PRESETS, RunArguments, trainer_defaults

__all__ = ["PRESETS", "RunArguments", "train", "trainer_defaults"]
