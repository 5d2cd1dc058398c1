"""The runs of a study: which there are, which are done, and which settings the seeds take.

Runs are found by the hash of what determines them, so that studies share them. Where there are several settings to try,
a seed of its own tries them all, and the seeds of the study take the ones that validate best.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from datasets import DatasetDict

from ..data import load_corpus, load_tokens
from ..data.corpora import MADE_BY
from ..data.sources import NAMED
from ..data.synthetic import is_synthetic
from ..errors import UserError
from ..evaluation.results import HELD_OUT
from ..evaluation.scores import read_scores, scores_of, texts_hash
from ..manifest import read_manifest
from ..training import PRESETS
from ..training.run import Run
from .description import Study, Variant
from .halving import on_part
from .matching import Matched, match, match_trial, run_arguments, same_models
from .tuning import OPTION, SEED, Settings


@dataclass(frozen=True)
class Task:
    """A run, as processes tell each other of it.

    Attributes:
        variant: its number.
        seed: its seed.
        number: of its settings; None stands for those that will come out best, or next to best.
        rung: on which of the study's shares it is trained, counted from the last, the whole.
        place: of its settings among those that came out best; 0 is the best.
    """

    variant: int
    seed: int
    number: int | None
    rung: int = -1
    place: int = 0


@dataclass(frozen=True)
class Trial:
    """One run of a study: a variant with a seed and the settings that it tries.

    Attributes:
        variant: its name.
        seed: its seed.
        settings: what it tries, by field.
        matched: the variant with these settings.
        run: in the folder that they determine.
        share: of the tokens of a whole training.
        texts: the hashes of the texts that are held out, by split; none of drawn rows, which the run determines.

    Settings are tried with the caches that a model has by itself; those that are compared may be kept in fewer bits.
    """

    variant: str
    seed: int
    settings: Settings
    matched: Matched
    run: Run
    share: float = 1.0
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the progress says."""
        part = "" if self.share == 1 else f", {100 * self.share:g} % of the tokens"
        return f"{self.variant}, {in_words(self.settings)}, seed {self.seed}{part}"

    @property
    def is_tuning(self) -> bool:
        """Whether it tries settings, and takes no part in the comparison."""
        return self.seed == SEED

    @property
    def is_done(self) -> bool:
        """Whether it is trained and scored, and on the texts of the study: `eval` may have taken others since."""
        if not self.run.is_finished or (scores := read_scores(self.run.folder, self.cache_dtype)) is None:
            return False
        return all(split in scores and scores[split].text_sha256 == digest for split, digest in self.texts.items())

    @property
    def cache_dtype(self) -> str | None:
        """In which its caches are kept when it is scored; None for the model's own."""
        return None if self.is_tuning else self.matched.variant.cache_dtype

    @property
    def standing(self) -> float | None:
        """The nats of all validation, by which it is compared; None while they are not known.

        Of synthetic tasks the nats too: they tell settings apart where all answers are right, or all wrong.
        """
        return float(scores_of(self.run.folder, self.cache_dtype)["validation"].nats.sum()) if self.is_done else None


class Trials:
    """All runs of a study, in a fixed order. Small when pickled: each process reads the data itself.

    Args:
        study: what to compare.
        root: folder of all studies.
        accept_changes: take runs for the same though the code has changed since.

    Attributes:
        failed: why runs failed, by the names of their folders, as `study.json` says.
    """

    def __init__(self, study: Study, root: Path, accept_changes: bool = False):
        self.study, self.root, self.accept_changes = study, root, accept_changes
        self.failed: dict[str, str] = {}
        self._made: dict[Task, Trial] = {}
        self._loaded: dict[Path, tuple[DatasetDict, dict]] = {}

    def __reduce__(self):
        return Trials, (self.study, self.root.absolute(), self.accept_changes)

    def data_of(self, corpus: str) -> Path:
        """Return the folder of a corpus, its tokenizer and tokens; studies with the same data settings share it."""
        given = self.study.data
        if is_synthetic(corpus):
            return self.root / "data" / re.sub(r"[^A-Za-z0-9.=-]+", "-", corpus)
        slug = named_so(corpus, given["text_column"])
        length = self.study.row_length
        return self.root / "data" / f"{slug}-{given['vocab_size']}-{length}-{given['shuffle_seed']}"

    @property
    def data(self) -> Path:
        """Folder of the first corpus, of most studies the only one."""
        return self.data_of(self.study.corpora[0])

    def loaded(self, variant: Variant) -> tuple[DatasetDict, dict]:
        """Return the packed tokens that a variant is trained on, by split, and their manifest."""
        folder = self.data_of(self.study.corpus_of(variant))
        if folder not in self._loaded:
            self._loaded[folder] = load_tokens(folder / "tokens", folder / "tokenizer")
        return self._loaded[folder]

    @property
    def manifest(self) -> dict:
        """Of the first corpus's tokens."""
        return self.loaded(self.study.variants[0])[1]

    @cached_property
    def variants(self) -> list[Matched]:
        """What is compared, complete; of those that are one model the first."""
        return [matched for matched in self._solved if matched.variant.name not in self.same]

    @cached_property
    def same(self) -> dict[str, str]:
        """Variants that are left out, since they are the very model of another, each with that one."""
        return same_models(self.study, self._solved, self.manifest["vocab_size"])

    @cached_property
    def _solved(self):
        return match(self.study, self.manifest["vocab_size"])

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """The held-out documents, by split."""
        corpus = load_corpus(self.data / "corpus")
        if read_manifest(self.data / "corpus", MADE_BY)["hash"] != self.manifest["corpus_hash"]:
            raise UserError(
                f"{self.data} has been prepared from other text since this study began; run the study again"
            )
        return {split: list(corpus[split]["text"]) for split in HELD_OUT}

    @cached_property
    def text_hashes(self) -> dict[str, str]:
        """The hashes of the held-out texts, by split."""
        return {split: texts_hash(documents) for split, documents in self.texts.items()}

    def tasks(self) -> list[Task]:
        """Return all runs, those that try settings first, and of these first those of the smallest share."""
        counts = [self.study.trials_of(matched.variant) for matched in self.variants]
        first = -len(self.study.shares)
        tries = [
            Task(n, SEED, place if rung == first else None, rung, 0 if rung == first else place)
            for rung in range(first, 0)
            for n, of_rungs in enumerate(counts)
            for place in range(of_rungs[rung])
        ]
        chosen = {n: None if of_rungs[0] else 0 for n, of_rungs in enumerate(counts)}
        return tries + [Task(n, seed, number) for n, number in chosen.items() for seed in self.study.seeds]

    def design(self, variant: int) -> tuple[Settings, ...]:
        """Return the settings that a variant tries."""
        return self.study.designs[self.variants[variant].variant.attention]

    def decided(self, tasks: list[Task]) -> dict[Task, Task]:
        """Return those tasks whose settings are known by now, each with the same task with these."""
        before = {task: (task.variant, rung_before(task)) for task in tasks if task.number is None}
        orders = {of: self.order(*of) or [] for of in set(before.values())}
        best = {task: orders[of][task.place : task.place + 1] for task, of in before.items()}
        known = {task: [task.number] if task.number is not None else best.get(task, []) for task in tasks}
        return {task: replace(task, number=number) for task, numbers in known.items() for number in numbers}

    def unfinished(self, tasks: list[Task]) -> list[Task]:
        """Return those tasks that may still be done: not done, not failed, and not without any settings that work."""
        decided = self.decided(tasks)
        known = [task for task in tasks if task in decided and not self.has_ended(self.trial(decided[task]))]
        unknown = [t for t in tasks if t not in decided and self.order(t.variant, rung_before(t)) is None]
        return known + unknown

    def part_of(self, task: Task) -> float:
        """Return the share of a whole training that a task is."""
        return self.study.shares[task.rung]

    def trial(self, task: Task) -> Trial:
        """Return a run in the folder that its settings determine."""
        key = replace(task, place=0)
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, task: Task) -> Trial:
        assert task.number is not None  # decided
        settings = self.design(task.variant)[task.number]
        matched = match_trial(self.study, self.variants, task.variant, settings, self.manifest["vocab_size"])
        data = self.data_of(self.study.corpus_of(matched.variant))
        share = self.study.shares[task.rung]
        more = {"data_dir": str(data), "resume": True, "accept_changes": self.accept_changes}
        arguments = run_arguments(self.study, matched.variant, matched.options, matched.intermediate_size, **more)
        flags = self.study.arguments(matched.variant)[1] | {"seed": task.seed}
        attention = matched.variant.attention
        run = Run(self.root, attention, on_part(arguments, share), flags, self.loaded(matched.variant)[1])
        run.folder = self.root / "runs" / f"{attention}-{run.identity.digest(PRESETS[self.study.preset])}"
        texts = {} if run.task else self.text_hashes
        return Trial(self.variants[task.variant].variant.name, task.seed, settings, matched, run, share, texts)

    def check_recorded(self) -> None:
        """Say of the runs that stand there already what is not known of them, and refuse those by other code.

        Raises:
            UserError: some are by other code, and that is not accepted.
        """
        standing = [trial.run for trial in map(self.trial, self.decided(self.tasks()).values()) if trial.run.recorded]
        found = {run.folder: run.comparison for run in standing}
        by_other = [folder for folder, comparison in found.items() if comparison.changes]
        if by_other:
            changes = sorted({change for folder in by_other for change in found[folder].changes})
            what = f"by other code ({', '.join(changes)}): {', '.join(map(str, by_other))}"
            if not self.accept_changes:
                raise UserError(
                    f"there are runs of this study {what}; --accept_changes takes them as the same, or delete their "
                    "folders to train them again"
                )
            print(f"Taken as the same are runs {what}.")
        for kind, parts in (
            ("by a version that did not record", [comparison.unknown for comparison in found.values()]),
            ("with", [comparison.said for comparison in found.values()]),
        ):
            if any(parts):
                count, names = sum(map(bool, parts)), sorted({name for part in parts for name in part})
                print(f"Runs that stand there {kind} {', '.join(names)}: {count}.")

    def has_ended(self, trial: Trial) -> bool:
        """Whether a run is done, or has failed and nobody tries it again."""
        return trial.run.folder.name in self.failed or trial.is_done

    def entrants(self, variant: int, rung: int) -> list[int] | None:
        """Return the numbers of the settings that are tried on a share; None while they are not known."""
        if rung == -len(self.study.shares):
            return list(range(len(self.design(variant))))
        order = self.order(variant, rung - 1)
        return None if order is None else order[: self.study.trials_of(self.variants[variant].variant)[rung]]

    def order(self, variant: int, rung: int = -1) -> list[int] | None:
        """Return the numbers of the settings that were tried on a share, by validation, the best first.

        None while some are still to be tried; those that failed are left out.
        """
        if (numbers := self.entrants(variant, rung)) is None:
            return None
        trials = {number: self.trial(Task(variant, SEED, number, rung)) for number in numbers}
        if not all(map(self.has_ended, trials.values())):
            return None
        came = {number: stands for number, trial in trials.items() if (stands := trial.standing) is not None}
        return sorted(came, key=came.__getitem__)

    def halved(self, task: Task) -> dict:
        """Return how a trial of a part of the tokens came out among the others; empty of any other run."""
        if task.rung == -1 or task.number not in (order := self.order(task.variant, task.rung) or []):
            return {}
        kept = self.study.trials_of(self.variants[task.variant].variant)[task.rung + 1]
        place = order.index(task.number)
        return {"share": self.study.shares[task.rung], "place": place + 1, "of": len(order), "goes_on": place < kept}

    def best(self, variant: int) -> int | None:
        """Return the number of the settings that validate best, or of the only ones that there are.

        None while some are still to be tried, or where no run has come to its end.
        """
        if len(self.design(variant)) == 1:
            return 0
        return next(iter(self.order(variant) or []), None)

    def chosen(self, variant: int) -> Matched:
        """Return a variant with the settings that came out best, as far as that is known."""
        number = self.best(variant)
        return (
            self.variants[variant] if number is None else self.trial(Task(variant, self.study.seeds[0], number)).matched
        )


def named_so(corpus: str, text_column: str) -> str:
    """Return a corpus's name for a folder; of what is not known by that name with a number, which says what it is."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(corpus).stem).strip("-")
    if corpus in NAMED or corpus == "auto":
        return slug
    return f"{slug}-{hashlib.sha256(json.dumps([corpus, text_column]).encode()).hexdigest()[:8]}"  # as stated, anywhere


def rung_before(task: Task) -> int:
    """Return the rung that decides on the settings of a task: the one before, and for the seeds the whole."""
    return task.rung - 1 if task.seed == SEED else -1


def in_words(settings: Settings) -> str:
    """Return settings as text, such as "learning rate 0.003, initialization zero"."""
    shown = {name.removeprefix(OPTION).replace("_", " "): value for name, value in settings.items()}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )
