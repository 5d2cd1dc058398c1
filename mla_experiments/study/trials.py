"""The runs of a study: which there are, which are done, and which settings the seeds take.

Runs are found by the hash of what determines them, so that studies share them. Where there are several settings to try,
a seed of its own tries them all, and the seeds of the study take the ones that validate best.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from datasets import DatasetDict

from ..data import load_corpus, load_tokens
from ..data.synthetic import is_synthetic
from ..errors import UserError
from ..evaluation.results import HELD_OUT
from ..evaluation.scores import read_scores, scores_of
from ..training import PRESETS
from ..training.run import Run
from .description import Study, Variant
from .matching import Matched, match, match_trial, run_arguments, same_models
from .tuning import OPTION, SEED, Settings


@dataclass(frozen=True)
class Task:
    """A run as processes tell each other of it: the number of its variant, its seed and the number of its settings.

    None in their place stands for those that will come out best.
    """

    variant: int
    seed: int
    number: int | None


@dataclass(frozen=True)
class Trial:
    """One run of a study: a variant with a seed and the settings that it tries.

    Attributes:
        variant: its name.
        seed: its seed.
        settings: what it tries, by field.
        matched: the variant with these settings.
        run: in the folder that they determine.
    """

    variant: str
    seed: int
    settings: Settings
    matched: Matched
    run: Run

    @property
    def name(self) -> str:
        """What the progress says."""
        return f"{self.variant}, {in_words(self.settings)}, seed {self.seed}"

    @property
    def is_tuning(self) -> bool:
        """Whether it tries settings, and takes no part in the comparison."""
        return self.seed == SEED

    @property
    def is_done(self) -> bool:
        """Whether it is trained and scored."""
        return self.run.is_finished and read_scores(self.run.folder) is not None


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
        slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(corpus).stem).strip("-")
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
        return {split: list(corpus[split]["text"]) for split in HELD_OUT}

    def tasks(self) -> list[Task]:
        """Return all runs, those that try settings first."""
        tuned = [n for n in range(len(self.variants)) if len(self.design(n)) > 1]
        tries = [Task(n, SEED, number) for n in tuned for number in range(len(self.design(n)))]
        chosen = {n: None if n in tuned else 0 for n in range(len(self.variants))}
        return tries + [Task(n, seed, number) for n, number in chosen.items() for seed in self.study.seeds]

    def design(self, variant: int) -> tuple[Settings, ...]:
        """Return the settings that a variant tries."""
        return self.study.designs[self.variants[variant].variant.attention]

    def decided(self, tasks: list[Task]) -> dict[Task, Task]:
        """Return those tasks whose settings are known by now, each with the same task with these."""
        best = {variant: self.best(variant) for variant in {task.variant for task in tasks if task.number is None}}
        numbers = {task: best[task.variant] if task.number is None else task.number for task in tasks}
        return {task: replace(task, number=number) for task, number in numbers.items() if number is not None}

    def unfinished(self, tasks: list[Task]) -> list[Task]:
        """Return those tasks that may still be done: not done, not failed, and not without any settings that work."""
        decided = self.decided(tasks)
        known = [task for task in tasks if task in decided and not self.has_ended(self.trial(decided[task]))]
        unknown = [task for task in tasks if task not in decided and not self.has_tried(task.variant)]
        return known + unknown

    def trial(self, task: Task) -> Trial:
        """Return a run in the folder that its settings determine."""
        if task not in self._made:
            self._made[task] = self._make(task)
        return self._made[task]

    def _make(self, task: Task) -> Trial:
        assert task.number is not None  # decided
        settings = self.design(task.variant)[task.number]
        matched = match_trial(self.study, self.variants, task.variant, settings, self.manifest["vocab_size"])
        data = self.data_of(self.study.corpus_of(matched.variant))
        more = {"data_dir": str(data), "resume": True, "accept_changes": self.accept_changes}
        arguments = run_arguments(self.study, matched.variant, matched.options, matched.intermediate_size, **more)
        flags = self.study.arguments(matched.variant)[1] | {"seed": task.seed}
        attention = matched.variant.attention
        run = Run(self.root, attention, arguments, flags, self.loaded(matched.variant)[1])
        run.folder = self.root / "runs" / f"{attention}-{run.identity.digest(PRESETS[self.study.preset])}"
        return Trial(self.variants[task.variant].variant.name, task.seed, settings, matched, run)

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

    def tries(self, variant: int) -> list[Trial]:
        """Return the runs that try a variant's settings; none where there is one setting alone."""
        count = len(self.design(variant))
        return [self.trial(Task(variant, SEED, number)) for number in range(count)] if count > 1 else []

    def has_ended(self, trial: Trial) -> bool:
        """Whether a run is done, or has failed and nobody tries it again."""
        return trial.run.folder.name in self.failed or trial.is_done

    def has_tried(self, variant: int) -> bool:
        """Whether all settings of a variant have come to an end."""
        return all(self.has_ended(trial) for trial in self.tries(variant))

    def best(self, variant: int) -> int | None:
        """Return the number of the settings that validate best, or of the only ones that there are.

        None while some are still to be tried, or where no run has come to its end.
        """
        tries = self.tries(variant)
        if not tries:
            return 0
        if not self.has_tried(variant):
            return None
        done = {number: trial for number, trial in enumerate(tries) if trial.is_done}
        scores = {number: scores_of(trial.run.folder)["validation"] for number, trial in done.items()}
        # of synthetic tasks the nats too: they tell settings apart where all answers are right, or all wrong
        losses = {number: part.nats.sum() for number, part in scores.items()}
        return min(losses, key=losses.__getitem__, default=None)

    def chosen(self, variant: int) -> Matched:
        """Return a variant with the settings that came out best, as far as that is known."""
        number = self.best(variant)
        return (
            self.variants[variant] if number is None else self.trial(Task(variant, self.study.seeds[0], number)).matched
        )


def in_words(settings: Settings) -> str:
    """Return settings as text, such as "learning rate 0.003, initialization zero"."""
    shown = {name.removeprefix(OPTION).replace("_", " "): value for name, value in settings.items()}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )
