"""The schema of a study's file: what it may state, what each field can be, and what is said of one that cannot.

`read_study` reads by it, and what `mla-experiments study --help` and the documentation's reference list is made of it.
Beside its own fields a file has all those of training, which `fields.py` asks for what they can be.
"""

import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from ..data.synthetic import is_synthetic
from ..errors import Missing, UserError, repeated, shortened, unknown
from ..modeling.attention import MISSION, find
from ..modeling.attention.hybrid import is_hybrid
from ..training import PRESETS
from ..training.settings import preset_name
from ..vocabulary import USUAL, vocabulary_of
from .fields import CORPUS, FIXED, check_name, check_of_corpus, check_options, is_swept, of_training, typed
from .tuning import OPTION, SEED, Factor, Space, check_factor, factor_of

try:
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        PlainValidator,
        ValidationError,
        ValidationInfo,
    )
    from pydantic import model_validator as checked
except ModuleNotFoundError:
    raise Missing("pydantic", "the file of a study is read by it") from None

MUST_BE = {  # by pydantic's names of what is wrong
    "int_type": "a whole number", "float_type": "a number", "string_type": "text", "list_type": "a list",
    "finite_number": "a finite number", "greater_than": "above {gt:,}", "greater_than_equal": "at least {ge:,}",
    "less_than": "below {lt:,}", "less_than_equal": "at most {le:,}",
}  # fmt: skip
T = TypeVar("T")


def as_list(value: Any) -> list:
    """Return a list as it is and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def check_each_once(field: str, values: list) -> None:
    """Refuse an empty list, or one that says a thing twice."""
    if not values:
        raise UserError(f"{field}=[] leaves nothing to run; give a value or a list of values")
    if twice := repeated(values):
        raise UserError(f"{field} names {twice[0]} twice; once is enough")


def each_once(values: list, info: ValidationInfo) -> list:
    """Return a list that is not empty and says nothing twice."""
    check_each_once(str(info.field_name), values)
    return values


def one_for_all(value: Any, info: ValidationInfo) -> Any:
    """Return a field of the data, which is one for the whole study, or refuse a list."""
    if isinstance(value, list):
        raise UserError(
            f"{info.field_name}={value} cannot be swept: runs on other text or tokens do not compare; write a study "
            "for each, and see mla-experiments compare"
        )
    return value


@dataclass(frozen=True)
class Stated:
    """A mechanism as `attention` states it: by name, or with options of its own, `{mla: {kv_lora_rank: 64}}`."""

    name: str
    options: dict

    def __str__(self) -> str:
        return f"{self.name}: {self.options}" if self.options else self.name


def stated(value: Any) -> Stated:
    """Return what an entry of `attention` states."""
    if not isinstance(value, dict):
        return Stated(find(value), {})
    ((name, options),) = value.items() if len(value) == 1 else [("", None)]
    if not isinstance(options, dict):
        raise UserError(f"attention={value} must be a name, or one with its options, such as mla: {{kv_lora_rank: 64}}")
    return Stated(find(name), {str(option): one for option, one in options.items()})


def names_of(attention: list[Stated]) -> list[str]:
    """Return the names of mechanisms, each once."""
    return list(dict.fromkeys(one.name for one in attention))


def fresh(seeds: list[int]) -> list[int]:
    """Return the seeds that are compared, without the one that tunes."""
    if SEED in seeds:
        raise UserError(f"seeds has {SEED}, which tunes and takes no part in the comparison; choose another")
    return seeds


def by_mechanism(rate: Any, info: ValidationInfo) -> dict:
    """Return learning rates by mechanism: the preset's where none is stated, one for all where they are not told apart.

    Raises:
        UserError: a mechanism has none, or is none of the study's.
    """
    attention, preset = names_of(info.data.get("attention", [])), info.data.get("preset")
    if rate is None and preset:
        rate = PRESETS[preset]["learning_rate"]
    if not isinstance(rate, dict):
        return dict.fromkeys(attention, rate)
    if missing := sorted(set(attention) - set(rate)):
        raise UserError(f"learning_rate says nothing of {', '.join(missing)}; give it a rate or a list of them")
    if others := [name for name in rate if name not in attention]:
        raise UserError(f"learning_rate names {others[0]}, which is none of {', '.join(attention)}; leave it out")
    return rate


def as_flag(value: Any, info: ValidationInfo) -> Any:
    """Return a value as the flag of that name reads it."""
    return typed(str(info.field_name), value)


Listed = Annotated[list[T], BeforeValidator(as_list), AfterValidator(each_once)]
Whole = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Rate = Annotated[float, BeforeValidator(as_flag), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1)]


class Fields(BaseModel):
    """Fields of their own, which the class names, and others, which it does not."""

    model_config = ConfigDict(extra="allow")
    OTHERS: ClassVar[dict[str, str]] = {}

    @property
    def others(self) -> dict[str, Any]:
        """The other fields, by name."""
        assert self.model_extra is not None  # as the configuration says
        return self.model_extra


class Tuning(Fields):
    """What is tuned, in how many trials, and which have part of the tokens; others are factors, by name."""

    OTHERS = {
        "FIELD": "choices [a, b, c], or with decimal points a range: [1.0e-3, 1.0e-2]",
    }

    trials: int = Field(strict=True, ge=2, le=10_000, description="how many recipes each mechanism tries")
    halving: list[Share] = Field(
        [], description="shares of the tokens that all, the better half ... of them train on first: [0.125, 0.25]"
    )

    @checked(mode="after")
    def _halvings(self):
        if any(later <= sooner for sooner, later in zip(self.halving, self.halving[1:], strict=False)):
            raise UserError(f"tuning.halving={self.halving} must rise from each share to the next, as [0.25, 0.5] does")
        most = (self.trials - 1).bit_length()
        if len(self.halving) > most:
            raise UserError(
                f"tuning.halving={self.halving} halves {len(self.halving)} times, but of {self.trials} trials one is "
                f"left after {most}; give at most {most}, or more trials"
            )
        return self

    @checked(mode="after")
    def _factors(self):
        known = of_training() - set(FIXED)
        for name, values in self.others.items():
            if name in FIXED:
                raise UserError(f"tuning.{name} changes what is compared; list its values as a field of the study")
            check_name(name, known, "tuning")
            factor = factor_of(name, values)
            if not name.startswith(OPTION):
                factor = Factor(tuple(typed(name, value) for value in factor.values), factor.is_range)
            self.others[name] = factor
        if not self.others:
            raise UserError("tuning states trials but nothing to tune; give learning_rate: [1.0e-3, 1.0e-2], say")
        return self


class StudyFile(Fields):
    """What a study's file states; others are flags of training and options, each a value or a list of them."""

    OTHERS = {
        "attention.OPTION": "of those mechanisms that have it: attention.kv_lora_rank: [64, 128]",
        "corpus.FIELD": "of a synthetic corpus (docs/recall.md); a list sweeps it",
        "any flag of train": "hidden_size, train_tokens, optimizer ... (train --help, --help-all); a list sweeps it",
    }

    corpus: Annotated[str, BeforeValidator(one_for_all)] = Field(
        "auto", description="as `data --corpus`: auto, a path, hub:NAME, synthetic:NAME"
    )
    text_column: Annotated[str, BeforeValidator(one_for_all)] = Field("text", description="of a table")
    vocab_size: Annotated[int | str, BeforeValidator(vocabulary_of), BeforeValidator(one_for_all)] = Field(
        USUAL, description="entries of the tokenizer, or auto"
    )
    shuffle_seed: Annotated[Whole, BeforeValidator(one_for_all)] = Field(0, description="of the order of rows")
    preset: Annotated[str, BeforeValidator(preset_name)] = Field(
        "auto", validate_default=True, description="sizes to start from: demo or reference"
    )
    attention: Listed[Annotated[Stated, PlainValidator(stated)]] = Field(
        list(MISSION),
        validate_default=True,
        description="by name, [mha, mla], mla+mha over the layers, or with options: [mha, mla: {kv_lora_rank: 64}]",
    )
    seeds: Annotated[Listed[Whole], AfterValidator(fresh)] = Field(
        [0], description="one or a list; fresh ones are compared, another tunes"
    )
    learning_rate: Annotated[dict[str, Listed[Rate]], BeforeValidator(by_mechanism)] = Field(
        None,
        validate_default=True,
        description="one, a list to try, or of each mechanism: {mha: 1.0e-3, mla: [1.0e-3, 3.0e-3]}",
    )
    match: Literal["none", "parameters", "flops", "cache"] = Field(
        "none", description="none, parameters, flops or cache: what is held equal"
    )
    cache_bytes_per_token: Listed[Annotated[int, Field(strict=True, ge=1)]] = Field(
        [],
        description="with match: cache, the budget, or several, each matched apart; in single precision, or in "
        "cache_dtype",
    )
    cache_dtype: Listed[Literal["f32", "bf16", "f16", "int8"]] = Field(
        [], description="in which caches are kept when a run is scored: f32, bf16, f16, int8, or several"
    )
    tuning: Tuning | None = None

    @checked(mode="after")
    def _names(self, info: ValidationInfo):
        for name, value in self.others.items():
            if not name.startswith(CORPUS):  # those are looked at with the corpus
                check_name(name, set(type(self).model_fields), f"study={info.context}")
            check_each_once(name, value if is_swept(name, value) else [value])
        return self

    @checked(mode="after")
    def _match(self):
        if (self.match == "cache") != bool(self.cache_bytes_per_token):
            raise UserError("match=cache and cache_bytes_per_token belong together; give both or neither")
        hybrids = [name for name in names_of(self.attention) if is_hybrid(name)]
        if self.match == "cache" and hybrids:  # of several options none is the one to solve for
            raise UserError(
                f"match=cache solves for an option of one mechanism, which {hybrids[0]} is not; choose another"
            )
        return self

    @checked(mode="after")
    def _data(self):
        check_of_corpus({name: as_list(value) for name, value in self.starting(CORPUS).items()}, self.corpus)
        given = [name for name in ("text_column", "vocab_size", "shuffle_seed") if name in self.model_fields_set]
        if given and is_synthetic(self.corpus):
            raise UserError(f"{given[0]} has no effect on corpus={self.corpus}, which is drawn; leave it out")
        return self

    @checked(mode="after")
    def _training(self):
        options = self.starting(OPTION)
        mechanisms = names_of(self.attention)
        check_options(mechanisms, {name: as_list(value) for name, value in options.items()}, self.match)
        for one in self.attention:
            check_options([one.name], {OPTION + name: [value] for name, value in one.options.items()}, self.match)
        for name in self.others.keys() - options.keys() - self.starting(CORPUS).keys():
            value = self.others[name]
            several = is_swept(name, value)
            self.others[name] = [typed(name, one) for one in value] if several else typed(name, value)
            check_each_once(name, self.others[name] if several else [value])
        return self

    @checked(mode="after")
    def _tuned(self):
        if self.tuning is None:
            return self
        factors, mechanisms = self.tuning.others, names_of(self.attention)
        for name, factor in factors.items():
            check_factor(name, factor, mechanisms, self.tuning.trials)
        check_options(mechanisms, {name: one.values for name, one in factors.items() if OPTION in name}, self.match)
        if several := sorted(name for name, rates in self.learning_rate.items() if len(rates) > 1):
            raise UserError(f"learning_rate lists several for {several[0]} beside tuning; give it in tuning alone")
        of_one = {OPTION + option for one in self.attention for option in one.options}
        if twice := sorted(factors.keys() & (self.model_fields_set | self.others.keys() | of_one)):
            raise UserError(f"{twice[0]} is tuned and stated beside tuning; it can be one of them")
        return self

    @property
    def space(self) -> Space | None:
        """What is tuned; None where nothing is."""
        if self.tuning is None:
            return None
        return Space(self.tuning.trials, dict(self.tuning.others), tuple(self.tuning.halving))

    def starting(self, with_what: str) -> dict[str, Any]:
        """Return the fields that have a prefix."""
        return {name: value for name, value in self.others.items() if name.startswith(with_what)}


def read_fields(content: dict, path) -> StudyFile:
    """Return what a study's file states.

    Args:
        content: its fields.
        path: of the file, for the messages.

    Raises:
        UserError: a field that is unknown, or cannot be what it is: the first of them.
    """
    try:
        return StudyFile.model_validate({str(name): value for name, value in content.items()}, context=path)
    except ValidationError as error:
        raise sentence_of(dict(error.errors(include_url=False)[0])) from None


def sentence_of(problem: dict) -> UserError:
    """Return what pydantic found wrong with a field in one sentence: the field, its value, and what it must be."""
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if isinstance(said := context.get("error"), UserError):
        return said
    place = [part for part in problem["loc"] if isinstance(part, str)]
    name = ".".join(place[: 2 if place[0] == "tuning" else 1])
    if kind == "literal_error":
        return unknown(name, value, re.findall(r"'(\w+)'", context["expected"]))
    if kind in ("model_type", "missing"):
        shown = value if kind == "model_type" else dict(value)
        return UserError(f"tuning={shown} must state trials and what is tuned, such as learning_rate: [1.0e-3, 1.0e-2]")
    must = f"must be {MUST_BE[kind].format(**context)}" if kind in MUST_BE else f"cannot be: {problem['msg']}"
    return UserError(f"{name}={value if isinstance(value, str) else shortened(value)} {must}")


def listed(model: type[Fields] = StudyFile, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the fields of a study's file with what they mean, as help and documentation list them."""
    for name, field in model.model_fields.items():
        inner = [part for part in typing.get_args(field.annotation) if hasattr(part, "model_fields")]
        yield from (row for part in inner for row in listed(part, f"{name}."))
        if not inner:
            yield before + name, str(field.description)
    yield from ((before + name, meaning) for name, meaning in model.OTHERS.items())
