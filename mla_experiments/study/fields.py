"""The fields of a study's file: each is known and can be what it is, or is refused in one sentence."""

import argparse
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from ..data.synthetic import is_synthetic, task_named, task_of
from ..errors import UserError, unknown
from ..modeling.attention import ATTENTION, mechanisms_of
from ..modeling.attention.checks import check_option
from ..modeling.attention.hybrid import is_hybrid
from ..training import RunArguments
from ..training.flags import REFUSED
from ..vocabulary import USUAL, vocabulary_of
from . import tuning
from .stated import OWN
from .tuning import OPTION, Factor, Settings, Space, options_of

CLASSES = (RunArguments, TrainingArguments)
CORPUS = "corpus."  # before the fields of a synthetic corpus
DATA = {"corpus": "auto", "text_column": "text", "vocab_size": USUAL, "shuffle_seed": 0}
MATCHES = ("none", "parameters", "flops", "cache")
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


def check_fields(content: dict, path: Path) -> None:
    """Refuse a field that nobody knows, with the nearest one that somebody does, or that a study sets itself."""
    known = of_training().union(OWN, DATA)
    for name in content:
        if str(name).startswith(CORPUS):
            continue  # those are looked at with the corpus
        if name in INSTEAD:
            raise UserError(f"study={path} has the field {name}, which a study sets itself; {INSTEAD[name]}")
        if name in REFUSED:
            raise UserError(f"study={path} has the field {name}, which is not taken: {REFUSED[name]}")
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"study={path} has the unknown field {name}{hint}")


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
    """Refuse options that are none of any mechanism's, that cannot be what they are, or that a match solves for."""
    for option, values in options.items():
        knowing = [name for name in attention if option in options_of(name)]
        if not knowing:
            raise UserError(f"attention.{option} is an option of none of {', '.join(attention)}; leave it out")
        for mechanism in (one for name in knowing for one in mechanisms_of(name).values()):
            if option in mechanism.free_options():
                for value in values:
                    check_option(f"attention.{option}", value, mechanism.option_types()[option])
        if match == "cache" and any(option == ATTENTION[name].cache_option for name in attention):
            raise UserError(f"attention.{option} is what match=cache solves for; leave it out or choose another match")


def check_solvable(attention: list[str], match: str) -> None:
    """Refuse hybrids where the cache is held equal: of several options none is the one to solve for."""
    hybrids = [name for name in attention if is_hybrid(name)]
    if match == "cache" and hybrids:
        raise UserError(f"match=cache solves for an option of one mechanism, which {hybrids[0]} is not; choose another")


def match_of(match: str, budget: Any) -> tuple[str, int | None]:
    """Return what is held equal and the bytes of cache for a token, if that is it."""
    if match not in MATCHES:
        raise unknown("match", match, MATCHES)
    if (match == "cache") != (budget is not None):
        raise UserError("match=cache and cache_bytes_per_token belong together; give both or neither")
    if budget is not None and (not isinstance(budget, int) or budget < 1):
        raise UserError(f"cache_bytes_per_token={budget} must be a positive whole number")
    return match, budget


def seeds_of(seeds: Any) -> tuple[int, ...]:
    """Return the seeds, in the order given."""
    chosen = listed("seeds", seeds)
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in chosen):
        raise UserError(f"seeds={seeds} must be whole numbers from 0 and below 2^32, one or a list of them")
    if tuning.SEED in chosen:
        raise UserError(f"seeds has {tuning.SEED}, which tunes and takes no part in the comparison; choose another")
    return tuple(chosen)


def space_of(stated: Any, attention: list[str], known: set[str]) -> Space | None:
    """Return what is tuned; None where nothing is.

    Args:
        stated: the field `tuning`.
        attention: the mechanisms.
        known: names of the fields of training.

    Raises:
        UserError: it cannot be.
    """
    if stated is None:
        return None
    if not isinstance(stated, dict) or "trials" not in stated:
        raise UserError(f"tuning={stated} must state trials and what is tuned, such as learning_rate: [1.0e-3, 1.0e-2]")
    trials = stated["trials"]
    if type(trials) is not int or not 2 <= trials <= 10_000:
        raise UserError(f"tuning.trials={trials} must be a whole number from 2 to 10,000")
    factors = {}
    for name, values in stated.items():
        if name == "trials":
            continue
        if name in FIXED:
            raise UserError(f"tuning.{name} changes what is compared; list its values as a field of the study")
        if name not in known:
            near = difflib.get_close_matches(str(name), known - set(FIXED), n=1)
            raise UserError(f"tuning has the unknown field {name}" + (f"; did you mean {near[0]}?" if near else ""))
        factor = tuning.factor_of(name, values)
        tuning.check_factor(name, factor, attention, trials)
        if not name.startswith(OPTION):
            factor = Factor(tuple(typed(name, value) for value in factor.values), factor.is_range)
        factors[name] = factor
    if not factors:
        raise UserError("tuning states trials but nothing to tune; give learning_rate: [1.0e-3, 1.0e-2], say")
    return Space(trials, factors)


def designs_of(space: Space | None, rate: Any, attention: list[str]) -> dict[str, tuple[Settings, ...]]:
    """Return what every mechanism tries: the points of a space, or learning rates, ascending."""
    rates = rates_of(rate, attention)
    if space is None:
        return {name: tuple({"learning_rate": value} for value in rates[name]) for name in attention}
    if several := sorted(name for name in attention if len(rates[name]) > 1):
        raise UserError(f"learning_rate lists several for {several[0]} beside tuning; give it in tuning alone")
    return {
        name: tuple({"learning_rate": rates[name][0]} | point for point in tuning.design(space, name))
        for name in attention
    }


def rates_of(rate: Any, attention: list[str]) -> dict[str, tuple[float, ...]]:
    """Return the learning rates of every mechanism, ascending."""
    by_name = rate if isinstance(rate, dict) else dict.fromkeys(attention, rate)
    if missing := sorted(set(attention) - set(by_name)):
        raise UserError(f"learning_rate says nothing of {', '.join(missing)}; give it a rate or a list of them")
    return {
        name: tuple(sorted(positive("learning_rate", value) for value in listed("learning_rate", by_name[name])))
        for name in attention
    }


def positive(field: str, value: Any) -> float:
    """Return a value as a positive number, or refuse it."""
    number = typed(field, value)
    if number is None or not 0 < number < math.inf:
        raise UserError(f"{field}={value} must be a positive number")
    return number


def listed(field: str, value: Any) -> list:
    """Return a list as it is and anything else as a list of one.

    Raises:
        UserError: an empty list, or one that says a thing twice.
    """
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UserError(f"{field}=[] leaves nothing to run; give a value or a list of values")
    if twice := [one for place, one in enumerate(values) if one in values[:place]]:
        raise UserError(f"{field} names {twice[0]} twice; once is enough")
    return values


def same_for_all(field: str, value: Any) -> Any:
    """Return a field of the data, which is one for the whole study, or refuse a list."""
    if isinstance(value, list):
        raise UserError(
            f"{field}={value} cannot be swept: runs on other text or tokens do not compare; write a study for each, "
            "and see mla-experiments compare"
        )
    if field == "vocab_size":
        return vocabulary_of(value)
    if type(value) is not type(DATA[field]):
        raise UserError(f"{field}={value} must be {'a whole number' if isinstance(DATA[field], int) else 'text'}")
    if isinstance(value, int) and not 0 <= value < 2**32:
        raise UserError(f"{field}={value} must be from 0 and below 2^32")
    return value


def typed(field: str, value: Any) -> Any:
    """Return a value as the flag of that name reads it on the command line.

    Raises:
        UserError: the flag cannot be that.
    """
    if field.startswith(CORPUS):
        return value
    if value is None or isinstance(value, dict):
        if can_be(field, type(value)):
            return value
        raise UserError(f"{field}={value} cannot be; give one value, or a list of values to compare")
    parser = HfArgumentParser(CLASSES, exit_on_error=False)  # type: ignore[arg-type]  # dataclasses, as it wants
    try:
        return vars(parser.parse_args([f"--{field}={value}"]))[field]
    except argparse.ArgumentError as error:
        raise UserError(f"{field}={value} cannot be: {error.message}") from None


def can_be(field: str, kind: type) -> bool:
    """Return whether the type that a flag is declared with has a kind of value: None, or a dictionary."""
    (declared,) = (typing.get_type_hints(cls)[field] for cls in CLASSES if field in cls.__dataclass_fields__)
    return any(kind in (part, typing.get_origin(part)) for part in typing.get_args(declared))
