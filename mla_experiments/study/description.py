"""What a study compares: a YAML file becomes variants (what is compared), seeds and learning rates.

Every key is a flag of `mla-experiments data` or `train`, or one of the study's own (`OWN`). A list means that the study
holds one variant for each value; `attention.OPTION` is an option of those mechanisms that know it.
"""

import difflib
import itertools
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from ..errors import UserError
from ..modeling.attention import ATTENTION
from ..training import PRESETS, RunArguments, trainer_defaults
from ..training.settings import preset_name

OWN = ("attention", "seeds", "learning_rate", "match", "cache_bytes_per_token")
DATA = {"corpus": "auto", "text_column": "text", "vocab_size": 10_000, "shuffle_seed": 0}
MATCHES = ("none", "parameters", "flops", "cache")


@dataclass(frozen=True)
class Variant:
    """One of the things compared: a mechanism with its options, and what else is swept."""

    attention: str
    options: dict = field(default_factory=dict)
    changed: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Mechanism and what is swept, such as `mla kv_lora_rank=64`."""
        return " ".join([self.attention, *(f"{key}={value}" for key, value in (self.options | self.changed).items())])


@dataclass(frozen=True)
class Study:
    """A whole study, as stated."""

    name: str
    data: dict
    settings: dict
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]
    match: str
    cache_bytes_per_token: int | None

    def arguments(self, variant: Variant) -> tuple[dict, dict]:
        """Return the run arguments and the Trainer's flags of a variant, without what a run changes."""
        values = self.settings | variant.changed
        names = {f.name for f in fields(RunArguments) if f.init}
        own = {name: value for name, value in values.items() if name in names}
        return own, {name: value for name, value in values.items() if name not in names}


def read_study(path: Path) -> Study:
    """Return the study that a YAML file states.

    Raises:
        UserError: a file that cannot be read, or a field that is unknown or cannot be.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"study={path} cannot be read ({str(error).splitlines()[0]}); give a YAML file") from None
    if not isinstance(content, dict):
        raise UserError(f"study={path} is not a list of `field: value` lines; see experiments/")
    check_fields(content, path)
    preset = preset_name(content.pop("preset", "auto"))
    settings = trainer_defaults() | PRESETS[preset]
    rate = content.pop("learning_rate", settings["learning_rate"])
    attention = as_list(content.pop("attention", ["mha", "gqa", "mqa", "mla"]))
    own = {name: content.pop(name, None) for name in ("seeds", "match", "cache_bytes_per_token")}
    options = {
        name.split(".", 1)[1]: as_list(content.pop(name)) for name in list(content) if name.startswith("attention.")
    }
    data = {name: content.pop(name, value) for name, value in DATA.items()}
    swept = {name: content.pop(name) for name in list(content) if isinstance(content[name], list)}
    variants = tuple(variants_of(attention, options, swept))
    match = own["match"] or "none"
    if match not in MATCHES:
        raise UserError(f"match={match} is unknown; choose one of {', '.join(MATCHES)}")
    if (match == "cache") != (own["cache_bytes_per_token"] is not None):
        raise UserError("match=cache and cache_bytes_per_token belong together; give both or neither")
    return Study(
        name=path.stem,
        data=data,
        settings=settings | content,
        variants=variants,
        seeds=tuple(as_list(own["seeds"] if own["seeds"] is not None else [0])),
        rates=rates_of(rate, attention),
        match=match,
        cache_bytes_per_token=own["cache_bytes_per_token"],
    )


def check_fields(content: dict, path: Path) -> None:
    """Refuse a field that nobody knows, with the nearest one that somebody does."""
    from transformers import TrainingArguments

    flags = {f.name for cls in (RunArguments, TrainingArguments) for f in fields(cls) if f.init}
    known = {
        *flags,
        *OWN,
        *DATA,
        *(f"attention.{o}" for mechanism in ATTENTION.values() for o in mechanism.option_names()),
    } - {
        "run",
        "resume",
        "overwrite",
        "seed",
        "streaming",
    }
    if "streaming" in content:
        raise UserError(
            f"study={path} has the field streaming, but studies store their corpora; leave it out, or train with "
            "train_model.py --streaming and put the runs side by side with mla-experiments compare"
        )
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"study={path} has the unknown field {name}" + (f"; did you mean {near[0]}?" if near else "")
            )


def variants_of(attention: list[str], options: dict[str, list], swept: dict[str, list]):
    """Yield every mechanism with every combination of its swept options and of the swept fields."""
    for name in attention:
        if name not in ATTENTION:
            near = difflib.get_close_matches(str(name), ATTENTION, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(ATTENTION)}"
            raise UserError(f"attention={name} is unknown; {hint}")
        own = {option: values for option, values in options.items() if option in ATTENTION[name].option_names()}
        if name == "mha":
            own.pop("num_key_value_heads", None)
        if name == "mqa":
            own.pop("num_key_value_heads", None)
        for chosen in itertools.product(*own.values()):
            for changed in itertools.product(*swept.values()):
                yield Variant(name, dict(zip(own, chosen, strict=True)), dict(zip(swept, changed, strict=True)))


def rates_of(rate, attention: list[str]) -> dict[str, tuple[float, ...]]:
    """Return the learning rates of every mechanism, ascending."""
    by_name = rate if isinstance(rate, dict) else dict.fromkeys(attention, rate)
    if missing := sorted(set(attention) - set(by_name)):
        raise UserError(f"learning_rate says nothing of {', '.join(missing)}; give it a rate or a list of them")
    try:
        return {name: tuple(sorted(float(value) for value in as_list(by_name[name]))) for name in attention}
    except (TypeError, ValueError):
        raise UserError(
            f"learning_rate={rate} is not a number, a list of them, or one of these for each mechanism"
        ) from None


def as_list(value) -> list:
    """Return a list as it is and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def with_options(study: Study, variant: Variant, options: dict, **changed) -> Variant:
    """Return a variant with other options and fields; its name stays that of what was asked for."""
    return replace(variant, options=variant.options | options, changed=variant.changed | changed)
