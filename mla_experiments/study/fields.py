"""The fields of a study's file that are not its own: flags of training, options of mechanisms, fields of a corpus.

What each can be stands with them: in `RunArguments` and transformers' `TrainingArguments`, in the mechanism, in the
task. Here they are asked.
"""

import argparse
import difflib
import functools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from ..data.synthetic import is_synthetic, task_named, task_of
from ..errors import UserError
from ..modeling.attention import ATTENTION, mechanisms_of
from ..modeling.attention.checks import check_option
from ..training import RunArguments
from ..training.flags import REFUSED
from .tuning import OPTION, options_of

CLASSES = (RunArguments, TrainingArguments)
CORPUS = "corpus."  # before the fields of a synthetic corpus
BUDGET = "cache_bytes_per_token"
FIXED = (  # what a trial may not change
    "train_tokens", "max_steps", "sequence_length", "loss_on", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size", "positions", "validation_tokens", "attention", "preset",
)  # fmt: skip
INSTEAD = {  # flags of `train` that a study sets itself, and what says the same
    "seed": "give seeds", "attention_options": "give attention.OPTION, such as attention.kv_lora_rank",
    "resume": "a study always goes on", "overwrite": "delete the folder of a run to train it again",
    "accept_changes": "give --accept_changes to study",
    "run": "the study's file names it", "data_dir": "give --studies_dir", "weights_dir": "give --studies_dir",
    "figures_dir": "give --studies_dir", "output_dir": "give --studies_dir",
    "streaming": "studies store their corpora; runs of train_model.py --streaming go side by side with compare",
}  # fmt: skip


def of_training() -> set[str]:
    """Return the names of the fields that say how to train, options of mechanisms among them."""
    flags = {f.name for cls in CLASSES for f in fields(cls) if f.init}
    options = {OPTION + option for mechanism in ATTENTION.values() for option in mechanism.option_names()}
    return (flags | options) - INSTEAD.keys() - REFUSED.keys()


def check_name(name: str, own: set[str], where: str) -> None:
    """Refuse a field that nobody knows, with the nearest one that somebody does, or that a study sets itself.

    Args:
        name: of the field.
        own: the names of the study's own fields.
        where: it stands, for the message.
    """
    if name in INSTEAD:
        raise UserError(f"{where} has the field {name}, which a study sets itself; {INSTEAD[name]}")
    if name in REFUSED:
        raise UserError(f"{where} has the field {name}, which is not taken: {REFUSED[name]}")
    if name not in (known := of_training() | own):
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(f"{where} has the unknown field {name}" + (f"; did you mean {near[0]}?" if near else ""))


def check_of_corpus(of_corpus: dict[str, list], corpus: str) -> None:
    """Refuse fields of a corpus that has none, or that cannot be what they are, each value alone.

    Raises:
        UserError: see there.
    """
    for name, values in of_corpus.items():
        if not is_synthetic(corpus):
            raise UserError(f"{name} is a field of synthetic corpora, which corpus={corpus} is not; leave it out")
        task = task_of(corpus)
        for value in values:
            task_named(task.name, asdict(task) | {name.removeprefix(CORPUS): value})


def check_options(attention: list[str], options: Mapping[str, Sequence], match: str) -> None:
    """Refuse options that are none of any mechanism's, that cannot be what they are, or that a match solves for.

    Args:
        attention: the mechanisms.
        options: their values, by `attention.OPTION`.
        match: what is held equal.
    """
    for name, values in options.items():
        option = name.removeprefix(OPTION)
        knowing = [one for one in attention if option in options_of(one)]
        if not knowing:
            raise UserError(f"{name} is an option of none of {', '.join(attention)}; leave it out")
        for mechanism in (one for known in knowing for one in mechanisms_of(known).values()):
            if option in mechanism.free_options():
                for value in values:
                    check_option(name, value, mechanism.option_types()[option])
        if match == "cache" and any(option == ATTENTION[one].cache_option for one in attention):
            raise UserError(f"{name} is what match=cache solves for; leave it out or choose another match")


def typed(field: str, value: Any) -> Any:
    """Return a value as the flag of that name reads it on the command line.

    Raises:
        UserError: the flag cannot be that.
    """
    if value is None or isinstance(value, dict | list):
        if can_be(field, type(value)):
            return value
        raise UserError(f"{field}={value} cannot be; give one value, or a list of values to compare")
    try:
        return vars(_command_line().parse_args([f"--{field}={value}"]))[field]
    except argparse.ArgumentError as error:
        raise UserError(f"{field}={value} cannot be: {error.message}") from None


def is_swept(field: str, value: Any) -> bool:
    """Return whether a value is several to compare: a list, of a flag that is a list itself a list of lists."""
    is_of_lists = not field.startswith((CORPUS, OPTION)) and can_be(field, list)
    return isinstance(value, list) and (not is_of_lists or any(isinstance(one, list) for one in value))


@functools.cache
def _command_line() -> HfArgumentParser:
    return HfArgumentParser(CLASSES, exit_on_error=False)  # type: ignore[arg-type]  # dataclasses, as it wants


def can_be(field: str, kind: type) -> bool:
    """Return whether the type that a flag is declared with has a kind of value: None, a dictionary or a list."""
    (declared,) = (typing.get_type_hints(cls)[field] for cls in CLASSES if field in cls.__dataclass_fields__)
    return any(kind in (part, typing.get_origin(part)) for part in typing.get_args(declared))
