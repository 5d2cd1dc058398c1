"""What a study compares: a YAML file becomes variants (what is compared), what is tuned of them, and seeds.

Every key is a flag of `mla-experiments data` or `train`, or one of the study's own (`fields.OWN`). A list means that
the study holds one variant for each value; `attention.OPTION` is an option of those mechanisms that know it, and
`corpus.FIELD` a field of a synthetic corpus.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ..data.synthetic import Task, is_synthetic, task_of
from ..errors import UserError
from ..modeling.attention import MISSION, find
from ..training import PRESETS, RunArguments, trainer_defaults
from ..training.flags import taken
from ..training.settings import preset_name
from ..vocabulary import AUTO, USUAL
from ..yaml_files import read_yaml
from .fields import (
    CORPUS,
    DATA,
    OWN,
    check_fields,
    check_of_corpus,
    check_options,
    check_solvable,
    designs_of,
    listed,
    match_of,
    of_training,
    same_for_all,
    seeds_of,
    space_of,
    typed,
)
from .tuning import OPTION, Settings, Space, options_of


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
    """A whole study, as stated; `source` is the text of its file."""

    name: str
    source: str
    preset: str
    data: dict
    settings: dict
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    space: Space | None
    designs: dict[str, tuple[Settings, ...]]
    match: str
    cache_bytes_per_token: int | None

    def arguments(self, variant: Variant) -> tuple[dict, dict]:
        """Return the run arguments and the Trainer's flags of a variant, without what a run changes."""
        values = self.settings | {name: one for name, one in variant.changed.items() if not name.startswith(CORPUS)}
        names = {f.name for f in fields(RunArguments) if f.init}
        own = {name: value for name, value in values.items() if name in names}
        return own, {name: value for name, value in values.items() if name not in names}

    def runs_of(self, variant: Variant) -> int:
        """Return how many runs a variant has: one of every trial, where there are several, and one of every seed."""
        trials = len(self.designs[variant.attention])
        return (trials if trials > 1 else 0) + len(self.seeds)

    def corpus_of(self, variant: Variant) -> str:
        """Return what a variant is trained on: of synthetic corpora with the difficulty that is swept."""
        task = self.task_of(variant)
        return self.data["corpus"] if task is None else task.corpus

    def task_of(self, variant: Variant) -> Task | None:
        """Return the synthetic task that a variant is trained on; None where it is text."""
        if not is_synthetic(self.data["corpus"]):
            return None
        changed = {name.removeprefix(CORPUS): one for name, one in variant.changed.items() if name.startswith(CORPUS)}
        return replace(task_of(self.data["corpus"]), **changed)

    @property
    def corpora(self) -> list[str]:
        """All corpora of the study, one unless a difficulty is swept."""
        return list(dict.fromkeys(map(self.corpus_of, self.variants)))

    @property
    def planned_vocab_size(self) -> int:
        """Entries of the tokenizer, as far as they are known before data are prepared: the most where text decides."""
        stated = self.data["vocab_size"]
        return USUAL if stated == AUTO else stated

    @property
    def row_length(self) -> int:
        """Length of packed rows in tokens, which all sequences of the study divide."""
        return math.lcm(*(self.arguments(variant)[0]["sequence_length"] for variant in self.variants))


def read_study(path: Path) -> Study:
    """Return the study that a YAML file states.

    Raises:
        UserError: a file that cannot be read, or a field that is unknown or cannot be.
    """
    path = Path(path)
    source, content = read_yaml(path, "study", "`field: value`")
    asked = listed("attention", content.pop("attention", list(MISSION)))
    attention = listed("attention", [find(name) for name in asked])
    check_fields(content, path)
    preset = preset_name(content.pop("preset", "auto"))
    settings = {name: value for name, value in (trainer_defaults() | PRESETS[preset]).items() if value is not None}
    own = {"seeds": 0, "match": "none", "cache_bytes_per_token": None, "learning_rate": settings["learning_rate"]}
    own |= {name: content.pop(name) for name in OWN if name in content}
    space = space_of(own.get("tuning"), attention, of_training())
    match, budget = match_of(own["match"], own["cache_bytes_per_token"])
    options = {
        name.removeprefix(OPTION): listed(name, content.pop(name)) for name in list(content) if name.startswith(OPTION)
    }
    check_solvable(attention, match)
    check_options(attention, options, match)
    check_options(attention, tuned_options(space), match)
    given = [name for name in DATA if name != "corpus" and name in content]
    data = {name: same_for_all(name, content.pop(name, value)) for name, value in DATA.items()}
    if given and is_synthetic(data["corpus"]):
        raise UserError(f"{given[0]} has no effect on corpus={data['corpus']}, which is drawn; leave it out")
    data["corpus"] = with_fields(data["corpus"], content)
    values = {name: [typed(name, value) for value in listed(name, content[name])] for name in content}
    swept = {name: values.pop(name) for name in list(values) if isinstance(content[name], list)}
    study = Study(
        name=path.stem,
        source=source,
        preset=preset,
        data=data,
        settings=settings | {name: value for name, (value,) in values.items()},
        variants=tuple(variants_of(attention, options, swept)),
        seeds=seeds_of(own["seeds"]),
        space=space,
        designs=designs_of(space, own["learning_rate"], attention),
        match=match,
        cache_bytes_per_token=budget,
    )
    for variant in study.variants:  # refuses what cannot be before anything is prepared
        if task := study.task_of(variant):
            task.check_length(study.arguments(variant)[0]["sequence_length"])
        named = {*variant.changed, *(OPTION + name for name in variant.options)}
        if twice := sorted(named & set(space.factors if space else ())):
            raise UserError(f"{twice[0]} is tuned and swept; it can be one of them")
        for settings in study.designs[variant.attention]:
            taken(study.arguments(with_settings(variant, settings))[1])
    return study


def with_fields(corpus: str, content: dict) -> str:
    """Return the name of a corpus with the `corpus.FIELD`s that are the same for all, and take them out of the content.

    Raises:
        UserError: a field that the corpus does not have, or cannot have so.
    """
    of_corpus = {name: listed(name, content[name]) for name in content if name.startswith(CORPUS)}
    check_of_corpus(of_corpus, corpus)
    same = {name.removeprefix(CORPUS): content.pop(name) for name in of_corpus if not isinstance(content[name], list)}
    return replace(task_of(corpus), **same).corpus if is_synthetic(corpus) else corpus


def tuned_options(space: Space | None) -> dict[str, tuple]:
    """Return the options of mechanisms that are tuned, with their values, or the ends of their ranges."""
    factors = space.factors if space else {}
    return {name.removeprefix(OPTION): one.values for name, one in factors.items() if name.startswith(OPTION)}


def with_settings(variant: Variant, settings: Settings) -> Variant:
    """Return a variant with the settings of a trial: options of its mechanism, and fields of training."""
    options = {name.removeprefix(OPTION): value for name, value in settings.items() if name.startswith(OPTION)}
    changed = {name: value for name, value in settings.items() if not name.startswith(OPTION)}
    return Variant(variant.attention, variant.options | options, variant.changed | changed)


def variants_of(attention: list[str], options: dict[str, list], swept: dict[str, list]) -> Iterator[Variant]:
    """Yield every mechanism with every combination of its swept options and of the swept fields."""
    for name in attention:
        own = {option: values for option, values in options.items() if option in options_of(name)}
        for chosen in itertools.product(*own.values()):
            for changed in itertools.product(*swept.values()):
                yield Variant(name, dict(zip(own, chosen, strict=True)), dict(zip(swept, changed, strict=True)))
