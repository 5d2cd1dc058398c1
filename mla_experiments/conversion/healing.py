"""Healing: a converted model trained towards the original on more text, and the original beside it as a control.

The loss of a token is a mixture of what the original says and what stands there,

    (1 - α) · cross-entropy(text, converted) + α · KL(original ‖ converted),

so the model learns to be the original again, not only to predict the text (Hinton et al. 2015, Distilling the Knowledge
in a Neural Network, §2, at temperature 1). What it learns from the text itself is no recovery: so the original is
trained on the same tokens in the same order, by cross-entropy alone, and the healed model is judged beside that.

Both are runs of our Trainer: checkpoints are whole or not used, and a run that was stopped goes on from the last one to
the same bits. A folder whose run has not ended says so, and nothing loads it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, PrinterCallback, ProgressCallback, set_seed

from ..errors import Stopped, UserError
from ..manifest import file_hashes, locked, write_record
from ..modeling import DecoderForCausalLM
from ..modeling.loading import load_model
from ..run_files import METRICS_FILE, RUN_FILE, read_run
from ..training import checkpoints
from ..training.arguments import DECIDED
from ..training.callbacks import Metrics, Progress, RestoreLoss, StopInGoodOrder
from ..training.rows import TrainingStream
from ..training.settings import trainer_defaults
from ..training.trainer import StreamTrainer
from ..training.tried import training_arguments
from .constant_channel import hold

WARMUP, FLOOR = 0.05, 0.1  # of the steps; of the learning rate at the end


@dataclass(frozen=True)
class Healing:
    """How long, and how.

    Attributes:
        tokens: to train on.
        learning_rate: at its peak.
        distillation: α.
        batch: windows in a step.
        seed: of the order of the windows.
    """

    tokens: int
    learning_rate: float
    distillation: float
    batch: int
    seed: int = 0

    def check(self) -> None:
        """Refuse a mixture that is none.

        Raises:
            UserError: α is not from 0 to 1.
        """
        if not 0 <= self.distillation <= 1:
            raise UserError(f"heal_distillation={self.distillation} must be from 0 to 1")

    def steps(self, length: int) -> int:
        """Return how many steps that is, of windows of `length` tokens."""
        return max(1, self.tokens // (self.batch * length))


class Windows(torch.utils.data.Dataset):
    """Windows of text `[N, T + 1]`, each with the tokens that follow as labels."""

    def __init__(self, windows: torch.Tensor):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.windows[index]
        return {"input_ids": window[:-1], "labels": window[1:], "shift_labels": window[1:]}


class DistillingTrainer(StreamTrainer):
    """Trains on the mixture above; without a teacher on cross-entropy alone."""

    model: DecoderForCausalLM

    def __init__(self, *, teacher: DecoderForCausalLM | None, distillation: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self.distillation = distillation

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, the mean over its tokens."""
        logits = model(inputs["input_ids"], use_cache=False).logits.float().flatten(0, 1)  # [B T, vocabulary]
        said = logits.log_softmax(-1)
        loss = F.nll_loss(said, inputs["shift_labels"].flatten())
        if self.teacher is not None:
            with torch.no_grad():
                truth = self.teacher(inputs["input_ids"], use_cache=False).logits.float().flatten(0, 1).log_softmax(-1)
            apart = F.kl_div(said, truth, reduction="batchmean", log_target=True)
            loss = (1 - self.distillation) * loss + self.distillation * apart
        return (loss, logits) if return_outputs else loss


def train_on(
    start: Path,
    folder: Path,
    windows: torch.Tensor,
    healing: Healing,
    teacher: DecoderForCausalLM | None,
    tokenizer: PreTrainedTokenizerFast,
    identity: dict,
) -> Path:
    """Train a model and save it; go on where a run of the same identity was stopped, do nothing where it ended.

    Args:
        start: folder of the model to begin with.
        folder: of the run, and of what it makes.
        windows: `[N, T + 1]`.
        healing: how long, and how.
        teacher: the original; None for cross-entropy alone.
        tokenizer: the model's own.
        identity: what the run is a function of, beside `healing`.

    Returns:
        `folder`.

    Raises:
        UserError: something else stands there.
        Stopped: the user asked to stop; a checkpoint is saved.
    """
    identity = {**identity, **asdict(healing), "length": windows.shape[1] - 1, "distilled": teacher is not None}
    with locked(folder, patience=0):
        recorded = read_run(folder)
        if folder.exists() and any(folder.iterdir()) and recorded.get("healing") != identity:
            raise UserError(f"{folder} holds something else than this run, and is kept; move it away")
        if recorded.get("status") == "finished":
            print(f"{folder} is already trained; nothing to do.")
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / RUN_FILE, {"status": "running", "healing": identity})
        stop = StopInGoodOrder()
        trainer = _trainer(start, folder, windows, healing, teacher, tokenizer, stop)
        checkpoint = checkpoints.last_whole(folder)
        if checkpoint:
            trainer.add_callback(RestoreLoss(trainer, checkpoint))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            stop.restore()
        if trainer.state.global_step < trainer.args.max_steps:
            raise Stopped(f"Stopped at step {trainer.state.global_step}; go on with the same command.")
        trainer.model.to(stored_dtype(start)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {name: hashed for name, hashed in file_hashes(folder).items() if name != RUN_FILE and "/" not in name}
        write_record(folder / RUN_FILE, {"status": "finished", "healing": identity, "files": files})
    return folder


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of a model's weights as they are stored; healing itself is in single precision."""
    return load_model(folder).dtype


def _trainer(
    start: Path,
    folder: Path,
    windows: torch.Tensor,
    healing: Healing,
    teacher: DecoderForCausalLM | None,
    tokenizer: PreTrainedTokenizerFast,
    stop: StopInGoodOrder,
) -> DistillingTrainer:
    """The Trainer of a run, its model as it starts."""
    length = windows.shape[1] - 1
    steps = healing.steps(length)
    arguments = training_arguments({
        **{name: value for name, value in trainer_defaults().items() if value is not None},
        **DECIDED,
        "output_dir": str(folder),
        "max_steps": steps,
        "warmup_steps": int(WARMUP * steps),
        "lr_scheduler_kwargs": {"min_lr_rate": FLOOR},
        "learning_rate": healing.learning_rate,
        "per_device_train_batch_size": healing.batch,
        "eval_strategy": "no",
        "weight_decay": 0.0,
        "seed": healing.seed,
        "use_cpu": not torch.accelerator.is_available(),
    })  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)
    set_seed(healing.seed)
    tokens = healing.batch * length
    model = load_model(start).float().train()
    hold(model)
    trainer = DistillingTrainer(
        model=model,
        teacher=teacher,
        distillation=healing.distillation,
        args=arguments,
        train_dataset=TrainingStream(Windows(windows), steps * healing.batch, healing.seed),
        processing_class=tokenizer,
        callbacks=[
            Metrics(folder / METRICS_FILE, tokens, lambda: None),
            Progress(folder.name, tokens),
            stop,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
