"""From what a run is told to transformers' TrainingArguments: tokens become steps, a batch becomes its parts."""

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from ..errors import UserError
from .flags import taken
from .muon import check_optimizer
from .settings import RunArguments, mixed_precision
from .tried import training_arguments

DECIDED = {
    "disable_tqdm": True, "remove_unused_columns": False, "prediction_loss_only": True, "logging_nan_inf_filter": False,
}  # fmt: skip
LEAST = {"train_tokens": 1, "batch_size": 1, "sequence_length": 1, "validation_tokens": 1, "warmup_tokens": 0}
MOST = 2**62  # tokens of a run
DECAY = 0.2  # share of the steps (Hägele et al. 2024, Scaling Laws and Compute-Optimal Training, arXiv 2405.18392, §4)


def trainer_arguments(run: RunArguments, flags: dict, folder: Path) -> TrainingArguments:
    """Return the Trainer's arguments of a run, complete.

    Args:
        run: its own arguments.
        flags: of TrainingArguments, as the user gave them; those that are None were not given.
        folder: of the run.

    Raises:
        UserError: a value that cannot be, or has no effect.
    """
    check_least(run)
    check_optimizer(run.optimizer, flags)
    flags = taken(flags) | mixed_precision(run.precision) | DECIDED | {"output_dir": str(folder)}
    flags |= steps_of(run, flags)
    # several processes on CPUs find each other only when the CPU is asked for
    flags["use_cpu"] = bool(flags.get("use_cpu")) or not torch.accelerator.is_available()
    accumulation = flags.pop("gradient_accumulation_steps", None)
    arguments = training_arguments(flags)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process has one GPU; more are for torchrun, or for other runs
    at_once = arguments.train_batch_size * arguments.world_size
    arguments.gradient_accumulation_steps = accumulation or max(1, run.batch_size // at_once)
    if at_once * arguments.gradient_accumulation_steps != run.batch_size:
        raise UserError(
            f"batch_size={run.batch_size} is not the product of per_device_train_batch_size="
            f"{arguments.per_device_train_batch_size}, {arguments.world_size} device(s) and "
            f"gradient_accumulation_steps={accumulation or 'a whole number'}; change one of them"
        )
    return arguments


def check_least(run: RunArguments) -> None:
    """Refuse budgets in tokens that are nothing to train on."""
    for name, least in LEAST.items():
        if getattr(run, name) < least:
            raise UserError(f"{name}={getattr(run, name)} must be at least {least}")


def steps_of(run: RunArguments, flags: dict) -> dict[str, int | float]:
    """Return `max_steps` and `warmup_steps`: those given, or what the budgets in tokens come to.

    And for a schedule that stays level until it falls, the steps of its fall, where they are not given.
    """
    tokens = run.batch_size * run.sequence_length
    given = flags.get("max_steps", -1)
    steps = -(-run.train_tokens // tokens) if given == -1 else given
    if steps * tokens > MOST:
        asked = f"train_tokens={run.train_tokens}" if given == -1 else f"max_steps={given}"
        if tokens > MOST:
            asked = f"batch_size={run.batch_size} of sequence_length={run.sequence_length}"
        raise UserError(f"{asked} is more than anything trains on; lower it")
    warmup = flags.get("warmup_steps", min(-(-run.warmup_tokens // tokens), steps - 1))
    found = {"max_steps": steps, "warmup_steps": warmup}
    if flags.get("lr_scheduler_type") == "warmup_stable_decay" and not flags.get("lr_scheduler_kwargs"):
        decay = min(math.ceil(DECAY * steps), steps - math.ceil(warmup if warmup >= 1 else warmup * steps))
        found["lr_scheduler_kwargs"] = {"num_decay_steps": max(1, decay), "decay_type": "linear"}
    return found
