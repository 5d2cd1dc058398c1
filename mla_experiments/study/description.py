"""What a study compares: a YAML file becomes variants (what is compared), what is tuned of them, and seeds.

What a field can be stands in `schema.py`. A list means that the study holds one variant for each value;
`attention.OPTION` is an option of those mechanisms that know it, and `corpus.FIELD` a field of a synthetic corpus.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ..data.synthetic import Task, is_synthetic, task_of
from ..training import PRESETS, RunArguments, trainer_defaults
from ..training.flags import taken
from ..vocabulary import AUTO, USUAL
from ..yaml_files import read_yaml
from .fields import BUDGET, CORPUS, is_swept
from .halving import check_shares, entrants
from .schema import Stated, as_list, check_each_once, names_of, read_fields
from .tuning import OPTION, Settings, Space, designs_of, options_of


@dataclass(frozen=True)
class Variant:
    """One of the things compared: a mechanism with its options and how its caches are kept, and what else is swept.

    `cache_dtype` changes no run: the same model is scored with its caches kept so. None is the model's own.
    """

    attention: str
    options: dict = field(default_factory=dict)
    changed: dict = field(default_factory=dict)
    cache_dtype: str | None = None

    @property
    def name(self) -> str:
        """Mechanism and what is swept, such as `mla kv_lora_rank=64`."""
        kept = {"cache": self.cache_dtype} if self.cache_dtype else {}
        said = self.options | kept | self.changed
        return " ".join([self.attention, *(f"{key}={value}" for key, value in said.items())])


@dataclass(frozen=True)
class Study:
    """A whole study, as stated; `source` is the text of its file.

    `cache_bytes_per_token` is its one budget; where there are several, each variant has its own, see `budget_of`.
    """

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
        aside = {name for name in variant.changed if name == BUDGET or name.startswith(CORPUS)}
        values = self.settings | {name: one for name, one in variant.changed.items() if name not in aside}
        names = {f.name for f in fields(RunArguments) if f.init}
        own = {name: value for name, value in values.items() if name in names}
        return own, {name: value for name, value in values.items() if name not in names}

    def budget_of(self, variant: Variant) -> int | None:
        """Return the bytes of cache that a token of a variant may take, if the study holds that equal."""
        return variant.changed.get(BUDGET, self.cache_bytes_per_token)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the tokens that trials train on, of which the better half gets the next, and the whole."""
        return (*(self.space.halving if self.space else ()), 1.0)

    def trials_of(self, variant: Variant) -> list[int]:
        """Return how many trials of a variant train on each share; none where there is nothing to choose."""
        trials = len(self.designs[variant.attention])
        return entrants(trials if trials > 1 else 0, len(self.shares) - 1)

    def runs_of(self, variant: Variant) -> int:
        """Return how many runs a variant has: of every trial and share, where there are several, and of every seed."""
        return sum(self.trials_of(variant)) + len(self.seeds)

    def trainings_of(self, variant: Variant) -> float:
        """Return how many whole trainings the runs of a variant come to, of which those of a share are that part."""
        parts = zip(self.trials_of(variant), self.shares, strict=True)
        return sum(trials * share for trials, share in parts) + len(self.seeds)

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
    file = read_fields(content, path)
    options, of_corpus = file.starting(OPTION), file.starting(CORPUS)
    flags = {name: value for name, value in file.others.items() if name not in options}
    swept = {name: values for name, values in flags.items() if is_swept(name, values)}
    same = {name: value for name, value in flags.items() if name not in swept}
    budgets = file.cache_bytes_per_token
    swept |= {BUDGET: budgets} if len(budgets) > 1 else {}
    named = {name.removeprefix(OPTION): values for name, values in options.items()}
    variants = tuple(variants_of(file.attention, named, swept, file.cache_dtype or [None]))
    check_each_once("attention, with its options,", [variant.name for variant in variants])
    usual = {name: value for name, value in (trainer_defaults() | PRESETS[file.preset]).items() if value is not None}
    data = file.model_dump(include={"corpus", "text_column", "vocab_size", "shuffle_seed"})
    data["corpus"] = with_fields(file.corpus, {name: same.pop(name) for name in of_corpus if name in same})
    study = Study(
        name=path.stem,
        source=source,
        preset=file.preset,
        data=data,
        settings=usual | same,
        variants=variants,
        seeds=tuple(file.seeds),
        space=file.space,
        designs=designs_of(file.space, file.learning_rate, names_of(file.attention)),
        match=file.match,
        cache_bytes_per_token=budgets[0] if len(budgets) == 1 else None,
    )
    for variant in study.variants:  # refuses what cannot be before anything is prepared
        if task := study.task_of(variant):
            task.check_length(study.arguments(variant)[0]["sequence_length"])
        for settings in study.designs[variant.attention]:
            of_trial = with_settings(variant, settings)
            own, flags = study.arguments(of_trial)
            taken(flags)
            check_shares(study.shares[:-1], RunArguments(**own), flags)
    return study


def with_fields(corpus: str, same: dict) -> str:
    """Return the name of a corpus with the fields of a synthetic one that are the same for all."""
    fields_of_task = {name.removeprefix(CORPUS): value for name, value in same.items()}
    return replace(task_of(corpus), **fields_of_task).corpus if is_synthetic(corpus) else corpus


def with_settings(variant: Variant, settings: Settings) -> Variant:
    """Return a variant with the settings of a trial: options of its mechanism, and fields of training."""
    options = {name.removeprefix(OPTION): value for name, value in settings.items() if name.startswith(OPTION)}
    changed = {name: value for name, value in settings.items() if not name.startswith(OPTION)}
    return replace(variant, options=variant.options | options, changed=variant.changed | changed)


def variants_of(
    attention: list[Stated], options: dict, swept: dict[str, list], cache_dtypes: Sequence[str | None]
) -> Iterator[Variant]:
    """Yield every mechanism with every combination of its swept options, of dtypes of caches and of the swept fields.

    What an entry of `attention` says of itself goes before what is said of all.
    """
    for one in attention:
        of_all = {option: as_list(values) for option, values in options.items() if option in options_of(one.name)}
        own = of_all | {option: [value] for option, value in one.options.items()}
        for *chosen, dtype in itertools.product(*own.values(), cache_dtypes):
            for changed in itertools.product(*swept.values()):
                chosen_options, fields_changed = zip(own, chosen, strict=True), zip(swept, changed, strict=True)
                yield Variant(one.name, dict(chosen_options), dict(fields_changed), dtype)
