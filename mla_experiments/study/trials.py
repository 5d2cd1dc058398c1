"""The runs of a study: which there are, which are done, and which learning rate the other seeds take.

Runs are found by the hash of what determines them, so that studies share them. The first seed tries every learning
rate; the others take the one that validates best.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from datasets import DatasetDict

from ..data import load_corpus, load_tokens
from ..errors import UserError
from ..evaluation.results import HELD_OUT
from ..evaluation.scores import read_scores
from ..training import PRESETS
from ..training.run import Run
from .description import Study
from .matching import Matched, match, run_arguments


@dataclass(frozen=True)
class Task:
    """A run as processes tell each other of it: the number of its variant, its seed and its learning rate.

    A rate of None stands for the one that will come out best.
    """

    variant: int
    seed: int
    rate: float | None


@dataclass(frozen=True)
class Trial:
    """One run of a study: a variant with a seed and a learning rate."""

    matched: Matched
    seed: int
    rate: float
    run: Run

    @property
    def name(self) -> str:
        """What the progress says."""
        return f"{self.matched.variant.name}, learning rate {self.rate:g}, seed {self.seed}"

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

    def __reduce__(self):
        return Trials, (self.study, self.root.absolute(), self.accept_changes)

    @cached_property
    def data(self) -> Path:
        """Folder of the corpus, tokenizer and tokens; studies with the same data settings share it."""
        given = self.study.data
        slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(given["corpus"]).stem).strip("-")
        length = self.study.row_length
        return self.root / "data" / f"{slug}-{given['vocab_size']}-{length}-{given['shuffle_seed']}"

    @cached_property
    def _loaded(self):
        return load_tokens(self.data / "tokens", self.data / "tokenizer")

    @property
    def tokens(self) -> DatasetDict:
        """The packed tokens, by split."""
        return self._loaded[0]

    @property
    def manifest(self) -> dict:
        """Of the packed tokens."""
        return self._loaded[1]

    @cached_property
    def variants(self) -> list[Matched]:
        """What is compared, complete."""
        return match(self.study, self.manifest["vocab_size"])

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """The held-out documents, by split."""
        corpus = load_corpus(self.data / "corpus")
        return {split: list(corpus[split]["text"]) for split in HELD_OUT}

    def tasks(self) -> list[Task]:
        """Return all runs, rates first."""
        first, *others = self.study.seeds
        numbered = list(enumerate(self.variants))
        rates = [Task(n, first, rate) for n, m in numbered for rate in self.study.rates[m.variant.attention]]
        return list(dict.fromkeys(rates + [Task(n, seed, None) for n, _ in numbered for seed in others]))

    def decided(self, tasks: list[Task]) -> dict[Task, Task]:
        """Return those tasks whose learning rate is known by now, each with the same task at that rate."""
        best = {variant: self.best_rate(variant) for variant in {task.variant for task in tasks if task.rate is None}}
        rates = {task: best[task.variant] if task.rate is None else task.rate for task in tasks}
        return {task: replace(task, rate=rate) for task, rate in rates.items() if rate is not None}

    def unfinished(self, tasks: list[Task]) -> list[Task]:
        """Return those tasks that may still be done: not done, not failed, and not without any rate that works."""
        decided = self.decided(tasks)
        with_rate = [task for task in tasks if task in decided and not self.has_ended(self.trial(decided[task]))]
        without = [task for task in tasks if task not in decided and not self.has_tried(task.variant)]
        return with_rate + without

    def trial(self, task: Task) -> Trial:
        """Return a run in the folder that its settings determine."""
        if task not in self._made:
            self._made[task] = self._make(task)
        return self._made[task]

    def _make(self, task: Task) -> Trial:
        matched = self.variants[task.variant]
        more = {"data_dir": str(self.data), "resume": True, "accept_changes": self.accept_changes}
        arguments = run_arguments(self.study, matched.variant, matched.options, matched.intermediate_size, **more)
        flags = self.study.arguments(matched.variant)[1] | {"seed": task.seed, "learning_rate": task.rate}
        attention = matched.variant.attention
        run = Run(self.root, attention, arguments, flags, self.manifest)
        run.folder = self.root / "runs" / f"{attention}-{run.identity.digest(PRESETS[self.study.preset])}"
        return Trial(matched, task.seed, task.rate, run)

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

    def of_rates(self, variant: int) -> list[Trial]:
        """Return the runs that try a variant's learning rates."""
        rates = self.study.rates[self.variants[variant].variant.attention]
        return [self.trial(Task(variant, self.study.seeds[0], rate)) for rate in rates]

    def has_ended(self, trial: Trial) -> bool:
        """Whether a run is done, or has failed and nobody tries it again."""
        return trial.run.folder.name in self.failed or trial.is_done

    def has_tried(self, variant: int) -> bool:
        """Whether all learning rates of a variant have come to an end."""
        return all(self.has_ended(trial) for trial in self.of_rates(variant))

    def best_rate(self, variant: int) -> float | None:
        """Return the learning rate that validates best with the first seed, or the only one that there is.

        None while some are still to be tried, or where no run has come to its end.
        """
        trials = self.of_rates(variant)
        if len(trials) == 1:
            return trials[0].rate
        if not self.has_tried(variant):
            return None
        done = [trial for trial in trials if trial.is_done]
        losses = {trial.rate: read_scores(trial.run.folder)["validation"].nats.sum() for trial in done}
        return min(losses, key=losses.__getitem__, default=None)
