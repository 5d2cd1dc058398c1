"""TrainingArguments whose optimizer and schedule have been tried on a stand-in before anything is written."""

import contextlib
import copy
import inspect
import logging
import math
import os
from collections.abc import Iterator

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ..errors import UserError, reason_of, unknown
from .flags import STEERED_BY_VALIDATION

CHOOSE_LAYERS = ("galore", "apollo")
ON_THE_MODEL = (*CHOOSE_LAYERS, "lomo", "adalomo")  # optimizers that no stand-in serves
DICTIONARIES = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")

OF_THE_ENVIRONMENT = {  # and what to do instead
    "ACCELERATE_DYNAMO_BACKEND": "--torch_compile_backend says the same, and is recorded",
    "ACCELERATE_USE_FSDP": "--fsdp says the same, and is recorded",
    **dict.fromkeys(("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"), "models are sharded with --fsdp"),
}
OFF = ("no", "false", "off", "0", "n", "f")


class StreamTrainingArguments(TrainingArguments):
    """TrainingArguments whose CPU is "cpu" in every process.

    accelerate numbers the CPUs of several processes, and torch.load restores nothing to "cpu:1"; transformers before
    5.23 asks it to where several processes resume.
    """

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def training_arguments(flags: dict) -> TrainingArguments:
    """Return TrainingArguments that will do.

    Args:
        flags: as `flags.taken` gives them, `max_steps` among them.

    Raises:
        UserError: they will not; the flag is named if it is one alone.
    """
    check_environment(flags)
    arguments = made(flags)
    for name in DICTIONARIES:
        if name in flags:
            check_dictionary(name, getattr(arguments, name))
    asked = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    if arguments.mixed_precision != asked:
        raise UserError(
            f"ACCELERATE_MIXED_PRECISION={arguments.mixed_precision} of the environment is not what precision says "
            f"({asked}); make them agree"
        )
    if arguments.fsdp and arguments.use_cpu:
        raise UserError(
            "fsdp needs GPUs: on CPUs accelerate would shard nothing and train whole copies; leave --fsdp out"
        )
    try_reports(arguments)
    try_optimizer(arguments)
    try_schedule(arguments)
    return arguments


def check_environment(flags: dict) -> None:
    """Refuse what accelerate would do because a variable of the environment says so, and no record of the run."""
    for name, instead in OF_THE_ENVIRONMENT.items():
        value = os.environ.get(name, "no")
        if value.lower() not in OFF and not (name == "ACCELERATE_USE_FSDP" and flags.get("fsdp")):
            raise UserError(f"{name}={value} of the environment changes how a run trains; unset it: {instead}")


def check_dictionary(name: str, value: object) -> None:
    """Refuse options that are no dictionary, or that recomputing does not know."""
    if not isinstance(value, dict):
        raise UserError(f"{name}={value} must be a dictionary, in JSON")
    known = {*inspect.signature(checkpoint).parameters, "preserve_rng_state"} - {"function", "args", "kwargs"}
    if name != "lr_scheduler_kwargs" and (others := sorted(value.keys() - known)):
        raise unknown(name, others[0], sorted(known))


def made(flags: dict) -> TrainingArguments:
    """Return TrainingArguments of flags, or say which of them it refuses, and why."""
    try:
        return StreamTrainingArguments(**flags)
    except Exception as error:  # whatever a library makes of what somebody typed
        at_fault = [f"{name}={value}" for name, value in flags.items() if is_at_fault(name, flags)]
        what = f"{at_fault[-1]} cannot be" if at_fault else "training arguments do not fit together"
        raise UserError(f"{what}: {reason_of(error)}") from None


def is_at_fault(name: str, flags: dict) -> bool:
    """Return whether TrainingArguments refuses a flag alone, or takes all flags but that one."""
    return can_be_made({one: flags[one] for one in flags if one != name}) or not can_be_made({name: flags[name]})


def can_be_made(flags: dict) -> bool:
    """Return whether TrainingArguments takes these flags."""
    logging.disable()
    try:
        TrainingArguments(**{"use_cpu": True, **flags})
    except Exception:  # as above
        return False
    finally:
        logging.disable(logging.NOTSET)
    return True


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn what a library raises at values of the user's into one sentence that begins with them."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a library makes of what somebody typed
        raise UserError(f"{what} cannot be: {reason_of(error)}") from None


def try_reports(arguments: TrainingArguments) -> None:
    """Refuse to report to what is unknown, or not installed."""
    for name in arguments.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            raise unknown("report_to", name, ["none", "all", *INTEGRATION_TO_CALLBACK])
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to={name} needs its package, which is not installed; leave it out, or install it")


def try_optimizer(arguments: TrainingArguments) -> None:
    """Make the optimizer for a stand-in, and refuse options of which it takes no notice."""
    named, options = OptimizerNames(arguments.optim).value, arguments.optim_args or ""
    if arguments.optim_target_modules is not None and not named.startswith(CHOOSE_LAYERS):
        raise UserError(f"optim_target_modules={arguments.optim_target_modules} has no effect on optim={named}")
    parts = [part for part in options.replace(" ", "").split(",") if part]
    if not all(part.count("=") == 1 for part in parts):
        raise UserError(f"optim_args={options} is not understood; give NAME=VALUE, or several with commas between")
    with refused(f"optim={named}" + f" with optim_args={options}" * bool(options)):
        try:
            kind, values = Trainer.get_optimizer_cls_and_kwargs(arguments)
        except ValueError:
            if named.startswith(ON_THE_MODEL):
                return  # its package is there, and it asks for the model
            raise
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            kind([torch.nn.Parameter(torch.zeros(2, 2))], **values)
    for name in (part.partition("=")[0] for part in parts):
        if all(optimizer_with(arguments, f"{name}={trial}") == optimizer_with(arguments, None) for trial in "?1"):
            raise UserError(f"optim_args={options} has {name}, of which optim={named} takes no notice; leave it out")


def optimizer_with(arguments: TrainingArguments, options: str | None) -> tuple | None:
    """Return class and values of the optimizer with other options; None where they cannot be, and so are read."""
    other = copy.copy(arguments)
    other.optim_args = options
    try:
        return Trainer.get_optimizer_cls_and_kwargs(other)
    except Exception:  # whatever reading it raises
        return None


def try_schedule(arguments: TrainingArguments) -> None:
    """Make the schedule of the learning rate for a stand-in, and look at some of its rates."""
    kind, steps = SchedulerType(arguments.lr_scheduler_type).value, arguments.max_steps
    options = arguments.lr_scheduler_kwargs
    warmup = arguments.get_warmup_steps(steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    with refused(f"lr_scheduler_type={kind}" + f" with lr_scheduler_kwargs={options}" * bool(options)):
        schedule = get_scheduler(kind, optimizer, warmup, steps, dict(options) if isinstance(options, dict) else {})
        if kind in STEERED_BY_VALIDATION:
            return
        (factor,) = schedule.lr_lambdas
        rates = [factor(step) for step in {0, min(warmup, steps - 1), (warmup + steps) // 2, steps - 1}]
        if not all(isinstance(rate, int | float) and 0 <= rate < math.inf for rate in rates):
            raise ValueError(f"it gives the rates {rates} times the learning rate")
