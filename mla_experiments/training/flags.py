"""transformers' TrainingArguments as runs take them: each field works, or is refused in one sentence.

What is decided here, or would have no effect, is refused by name; what is left is held to its range. `tried.py` tries
out what ranges do not tell.
"""

import math
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments

from ..errors import UserError, unknown
from ..modeling import DecoderForCausalLM

REFUSED = {  # and what to do instead
    "output_dir": "give --weights_dir and --run",
    "num_train_epochs": "what is trained on is counted in tokens; give --train_tokens, or --max_steps",
    "resume_from_checkpoint": "give --resume, which goes on from the last whole checkpoint of the run",
    "disable_tqdm": "there is one bar, a run's own; redirect the standard error to be rid of it",
    "remove_unused_columns": "sequences hold what the model takes, and no other columns",
    "data_seed": "the order of the sequences follows --seed",
    **dict.fromkeys(("bf16", "fp16"), "give --precision"),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "validation computes in the --precision of training"),
    **dict.fromkeys(
        ("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
         "include_for_metrics", "batch_eval_metrics", "label_names"),
        "validation computes the loss alone",
    ),
    **dict.fromkeys(("train_sampling_strategy", "length_column_name"),
                    "all sequences are equally long, in an order that follows --seed"),
    "dataloader_drop_last": "batches are always full",
    "dataloader_in_order": "sequences come in the order that follows --seed",
    "accelerator_config": "a step's batch is dealt out by --batch_size and --per_device_train_batch_size",
    "auto_find_batch_size": "a step's batch does not change under way; give a smaller --per_device_train_batch_size",
    "parallelism_config": "start several processes with torchrun, and shard with --fsdp",
    "deepspeed": "shard with --fsdp",
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "Liger has no kernels for these models"),
    "use_cache": "training computes whole sequences, without a cache",
    "logging_nan_inf_filter": "a loss that is not finite ends the run, and its batch is kept",
    "skip_memory_metrics": "it would not be recorded; see mla-experiments bench training",
    **dict.fromkeys(("load_best_model_at_end", "greater_is_better"),
                    "a run ends with its last weights, and keeps the checkpoint of its lowest validation loss"),
    "save_only_model": "a checkpoint holds all that going on needs",
    "save_on_each_node": "one process writes for all, into a folder that all see",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway",
    "ignore_data_skip": "a run goes on where it stopped, never with sequences that it has seen",
    "restore_callback_states_from_checkpoint": "a run goes on where it stopped anyway",
    **dict.fromkeys(
        ("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
         "hub_revision"),
        "upload what is finished: mla-experiments export, then hf upload",
    ),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "train trains, and mla-experiments eval evaluates"),
    "local_rank": "torchrun says it by the environment",
}  # fmt: skip

Range = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)  # of any size, too large for a float as well


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


WHOLE: Range = (lambda value: _is_whole(value) and value >= 1, "a whole number from 1")
COUNT: Range = (lambda value: _is_whole(value) and value >= 0, "a whole number from 0")
POSITIVE: Range = (lambda value: _is_number(value) and value > 0, "a positive number")
FROM_ZERO: Range = (lambda value: _is_number(value) and value >= 0, "a number from 0")
BELOW_ONE: Range = (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 and below 1")
OFTEN: Range = (
    lambda value: _is_number(value) and (0 < value < 1 or (value >= 1 and _is_whole(value))),
    "a whole number of steps from 1, or a share of all steps below 1",
)
SEED: Range = (lambda value: _is_whole(value) and 0 <= value < 2**32, "a whole number from 0 and below 2^32")
RANGES: dict[str, Range] = {
    "learning_rate": POSITIVE, "weight_decay": FROM_ZERO, "adam_beta1": BELOW_ONE, "adam_beta2": BELOW_ONE,
    "adam_epsilon": FROM_ZERO, "max_grad_norm": FROM_ZERO, "label_smoothing_factor": BELOW_ONE,
    "neftune_noise_alpha": FROM_ZERO, "seed": SEED,
    "per_device_train_batch_size": WHOLE, "per_device_eval_batch_size": WHOLE, "gradient_accumulation_steps": WHOLE,
    "max_steps": (lambda value: value == -1 or WHOLE[0](value), "a whole number from 1, or -1 to count in tokens"),
    "warmup_steps": (
        lambda value: _is_number(value) and (0 <= value < 1 or (value >= 1 and _is_whole(value))),
        "a whole number of steps from 0, or a share of all steps below 1",
    ),
    "logging_steps": OFTEN, "eval_steps": OFTEN, "save_steps": OFTEN, "eval_delay": FROM_ZERO,
    "save_total_limit": WHOLE, "torch_empty_cache_steps": WHOLE,
    "dataloader_num_workers": COUNT, "dataloader_prefetch_factor": WHOLE,
    "ddp_bucket_cap_mb": WHOLE, "ddp_timeout": WHOLE,
}  # fmt: skip
CHOICES: dict[str, tuple] = {
    "metric_for_best_model": ("loss", "eval_loss"),
    "save_strategy": ("steps", "epoch", "no"),  # not "best": the best of those that are saved is always kept
    "include_num_input_tokens_seen": (True, False, "all", "non_padding", "no"),
    "dataloader_multiprocessing_context": tuple(multiprocessing.get_all_start_methods()),
}
NEEDS = {  # fields that would have no effect without another
    **dict.fromkeys(("run_name", "project"), "report_to"),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "report_to"),
    "activation_checkpointing_kwargs": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    **dict.fromkeys(
        ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        "dataloader_num_workers",
    ),
    "fsdp_config": "fsdp",
}
STEERED_BY_VALIDATION = ("reduce_lr_on_plateau", "greedy")
WITHOUT_WARMUP = ("constant", *STEERED_BY_VALIDATION)
WITHOUT_KWARGS = ("constant", "constant_with_warmup")
TO_A_TENTH = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")


def taken(flags: dict) -> dict:
    """Return the flags that TrainingArguments is to get, without those that nobody gave.

    Args:
        flags: by field; None is not given, where that is the default.

    Raises:
        UserError: one is refused, out of range, or without effect.
    """
    for name, value in flags.items():
        if value is not None:
            check_value(name, value)
            is_given = value != getattr(TrainingArguments, name, None)
            if is_given and name in NEEDS and flags.get(NEEDS[name]) in (None, 0, "", "none", ["none"], []):
                raise UserError(f"{name}={value} has no effect without {NEEDS[name]}; give that too, or leave it out")
    if flags.get("ddp_backend") and "WORLD_SIZE" not in os.environ:
        raise UserError(f"ddp_backend={flags['ddp_backend']} is for several processes; start them with torchrun")
    check_schedule(flags)
    check_recomputing(flags)
    check_compiling(flags)
    kept = {name: value for name, value in flags.items() if value is not None}
    if kept.get("lr_scheduler_type") in TO_A_TENTH and kept.get("lr_scheduler_kwargs") is None:
        kept["lr_scheduler_kwargs"] = {"min_lr_rate": 0.1}
    return kept


def check_value(name: str, value: Any) -> None:
    """Refuse a flag that is decided here, and a value that cannot be."""
    if name in REFUSED:
        shown = name if "token" in name else f"{name}={value}"  # what is secret is not repeated
        raise UserError(f"{shown} is not taken: {REFUSED[name]}")
    if name in RANGES and not RANGES[name][0](value):
        raise UserError(f"{name}={value} must be {RANGES[name][1]}")
    if name in CHOICES and str(value) not in map(str, CHOICES[name]):
        raise unknown(name, value, map(str, CHOICES[name]))


def check_schedule(flags: dict) -> None:
    """Refuse what a schedule of the learning rate would read past."""
    kind = flags.get("lr_scheduler_type")
    if flags.get("lr_scheduler_kwargs") and kind in WITHOUT_KWARGS:
        raise UserError(f"lr_scheduler_kwargs={flags['lr_scheduler_kwargs']} has no effect on {kind}; leave it out")
    if flags.get("warmup_steps") and kind in WITHOUT_WARMUP:
        raise UserError(f"warmup_steps={flags['warmup_steps']} has no effect on {kind}; leave it out")


def check_recomputing(flags: dict) -> None:
    """Refuse gradient checkpointing where the model has none."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if flags.get(name) and not DecoderForCausalLM.supports_gradient_checkpointing:
            raise UserError(f"{name}=True cannot be: these models keep their activations; leave it out")


def check_compiling(flags: dict) -> None:
    """Refuse backends and modes that torch.compile does not know here."""
    backend, mode = flags.get("torch_compile_backend"), flags.get("torch_compile_mode")
    if backend is not None:
        here = torch.compiler.list_backends(exclude_tags=())
        known = [name for name in (kind.value.lower() for kind in DynamoBackend) if name in here]
        if backend not in known:
            raise unknown("torch_compile_backend", backend, known)
    if mode is not None and mode not in (known := list(torch._inductor.list_mode_options())):
        raise unknown("torch_compile_mode", mode, known)
