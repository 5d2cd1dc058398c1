"""transformers' Trainer with sequences in the stream's own order, whole checkpoints, and faults that are explained."""

import json
import math
import shutil
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer

from ..errors import UserError
from ..manifest import write_json
from . import checkpoints
from .callbacks import StopAskedFor
from .muon import muon
from .rows import IGNORED, DrawnRows, PackedRows
from .streamed import StreamedSequences
from .tried import refused

SINCE_LOG = "loss-since-log-{}.json"


class StreamTrainer(Trainer):
    """A Trainer over a `TrainingStream` or `StreamedSequences`, which hold sequences in the order to train on them."""

    model: PreTrainedModel
    eval_dataset: PackedRows | DrawnRows

    def __init__(self, *, args, optimizer="adamw", **kwargs):
        self._uses_muon = optimizer == "muon"
        self._saving, self.left_validation, self.makes_up_for_validation = False, False, False
        self._begun, self._loss_before, self._micro_batches = -1, None, []  # the step in hand
        self._keep, args.save_total_limit = args.save_total_limit, None  # pruned by `checkpoints.prune`
        super().__init__(args=args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, *args, **kwargs):
        """Make the optimizer, or say that it cannot be made for this model."""
        if self._uses_muon:
            self.optimizer = muon(self.model, self.args, self.get_decay_parameter_names(self.model))
            return self.optimizer
        with refused(f"optim={self.args.optim.value}"):
            return super().create_optimizer(*args, **kwargs)

    def _get_output_dir(self, trial):
        run_folder = super()._get_output_dir(trial)
        return str(Path(run_folder) / checkpoints.PARTIAL) if self._saving else run_folder

    def _save_checkpoint(self, model, trial):
        run_folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        if checkpoints.is_whole(run_folder / name):
            return  # the step after it was left in its middle, or the validation for which it was resumed
        folder = run_folder / checkpoints.PARTIAL / name
        self._saving = True
        try:
            with checkpoints.explained(folder):
                super()._save_checkpoint(model, trial)
                self._save_loss_since_log(folder)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    if isinstance(self.train_dataset, StreamedSequences):
                        self.train_dataset.save(folder, self.state.global_step)
                    checkpoints.publish(folder, run_folder)
                    checkpoints.prune(run_folder, self._keep, self.validation_losses())
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()

    def _save_loss_since_log(self, folder):
        """The Trainer forgets what it has summed up for the next line of the log; here it is kept, by process."""
        loss = self._loss_before if self._is_in_a_step() else self._tr_loss
        content = {"loss": float(loss), "since": self._globalstep_last_logged, "left_validation": self.left_validation}
        write_json(folder / SINCE_LOG.format(self.args.process_index), content)

    def restore_loss_since_log(self, folder: Path) -> None:
        """Go on summing up the loss where a checkpoint left it; over other processes by the mean of those then."""
        kept = [json.loads(path.read_text()) for path in sorted(folder.glob(SINCE_LOG.format("*")))]
        if len(kept) == self.args.world_size:
            kept = [json.loads((folder / SINCE_LOG.format(self.args.process_index)).read_text())]
        self._tr_loss = self._tr_loss + sum(part["loss"] for part in kept) / len(kept)
        self._globalstep_last_logged = kept[0]["since"]

    def validation_losses(self) -> dict[int, float]:
        """Return the validation losses so far, by step."""
        return {int(entry["step"]): entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry}

    def training_step(self, model, inputs, *args, **kwargs):
        """Train on a micro-batch, and remember it until its step is done."""
        if not self._is_in_a_step():
            self._begun, self._loss_before, self._micro_batches = self.state.global_step, self._tr_loss.clone(), []
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._micro_batches.append((inputs, loss))
        return loss

    def _is_in_a_step(self) -> bool:
        """Whether a step was begun and not ended: what it has summed up does not count if it is left there."""
        return self._begun == self.state.global_step

    def _get_grad_norm(self, model, grad_norm=None):
        """Stop before a step that would spoil the weights: all processes do, for they share gradients."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        losses = [loss.item() for _, loss in self._micro_batches]
        if not all(map(math.isfinite, losses)):
            self._give_up("loss", math.fsum(losses))
        if not self.args.fp16 and not math.isfinite(norm):  # f16's scaler leaves out such a step, and goes on
            self._give_up("grad_norm", float(norm))
        return norm

    def _give_up(self, name, value):
        run_folder, step = Path(self.args.output_dir), self.state.global_step + self._is_in_a_step()
        kept = run_folder / f"not-finite-at-step-{step}-process-{self.args.process_index}.safetensors"
        parts = [inputs for inputs, _ in self._micro_batches]
        save_file({key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}, kept)
        whole = [folder for folder in checkpoints.in_order(run_folder) if checkpoints.is_whole(folder)]
        last = f"the last good checkpoint is {whole[-1]}" if whole else "there is no checkpoint before it"
        raise UserError(
            f"{name} is {value} at step {step} with learning_rate={self._get_learning_rate():g}; its batch is kept in "
            f"{kept} and {last}; the same settings would end here again: lower --learning_rate or raise "
            "--warmup_tokens, with --run NAME to keep this run"
        )

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self._is_in_a_step():  # left in its middle: it is begun anew, and logged then
            self.control.should_log = self.control.should_evaluate = False
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Validate, unless the user asks to stop meanwhile: a resumed run then makes up for it."""
        self.model.eval()
        try:
            metrics = self._validated()
        except StopAskedFor:
            self.left_validation = True
            self._save_checkpoint(self.model_wrapped, None)
            raise
        if not math.isfinite(metrics["eval_loss"]) and self._micro_batches:
            self._give_up("eval_loss", metrics["eval_loss"])
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
        """A validation that is made up for steers the schedule as it would have in its place."""
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler and not self.makes_up_for_validation)

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        """The mean loss of all tokens, to the bit the same on any number of processes; of drawn rows the accuracy too.

        Batches are the same everywhere, dealt out in turn, and summed up in their order. Where their number does not
        divide, some processes repeat the first one, for all must take part in what sharded models gather.
        """
        size, rows = self.args.eval_batch_size, self.eval_dataset
        batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        first, step = self.args.process_index, self.args.world_size
        parts = []
        for place in range(first, first + -(-len(batches) // step) * step, step):
            batch = batches[place if place < len(batches) else 0]
            inputs = self._prepare_inputs(self.data_collator([rows[index] for index in batch]))
            with self.compute_loss_context_manager():
                outputs = self.model_wrapped(**inputs, use_cache=False)
            if place < len(batches):
                parts.append((place, outputs.loss.item(), *weight_and_right(rows, outputs, inputs)))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        parts = sorted(gather_object(parts))
        total = sum(weight for _, _, weight, _ in parts)
        metrics = {"eval_loss": math.fsum(loss * weight for _, loss, weight, _ in parts) / total}
        if isinstance(rows, DrawnRows):
            metrics["eval_accuracy"] = sum(right for _, _, _, right in parts) / total
        return metrics


def weight_and_right(rows: PackedRows | DrawnRows, outputs, inputs: dict) -> tuple[int, int]:
    """Return what the loss of a batch counts for, and how many answers of drawn rows are right.

    Rows of text have as many tokens each; drawn ones may not have as many answers.
    """
    labels = inputs["shift_labels"]
    if not isinstance(rows, DrawnRows):
        return len(labels), 0
    return int((labels != IGNORED).sum()), int((outputs.logits.argmax(-1) == labels).sum())


def lacks_validation(checkpoint: Path) -> bool:
    """Return whether the run was stopped in the validation that belongs to the step of a checkpoint."""
    return json.loads((checkpoint / SINCE_LOG.format(0)).read_text(encoding="utf-8")).get("left_validation", False)
