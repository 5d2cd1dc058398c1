"""transformers' Trainer with sequences in the stream's own order and one clear sentence when a disk is full."""

import shutil
from pathlib import Path

from safetensors import SafetensorError
from torch.utils.data import SequentialSampler
from transformers import Trainer

from ..errors import UserError


class StreamTrainer(Trainer):
    """A Trainer over a `TrainingStream`, which holds its sequences in the order in which to train on them."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{folder} could not be written ({reason}); the checkpoint before it is whole: "
                "free space on the disk, then go on with --resume"
            ) from error
