"""Several studies and runs side by side, as far as they can be compared."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..benchmark.costs import cache_elements_per_token, num_parameters
from ..errors import UserError
from ..evaluation.measures import measure_of, ratio
from ..evaluation.scores import SplitScores, read_scores
from ..manifest import file_hash
from ..markdown import table
from ..modeling import DecoderConfig
from ..run_files import RUN_FILE, check_files, read_run
from ..study.record import STUDY
from ..study.statistics import compare, estimate, perplexity_per_word
from .findings import Findings, Runs, read_findings
from .study_tables import shown
from .text import HOW_TOLD_APART

SAID_OTHERWISE = {"model", "seed", "steps", "tokens", "tokens_hash"}  # by the table, or as tokens and tokenizers


@dataclass(frozen=True)
class Contestant:
    """Runs that differ in their seed alone, the name under which they are shown, and which fields were tuned."""

    name: str
    runs: Runs
    tests: dict[int, SplitScores]  # scores of the test split, by seed
    tuned: frozenset[str] = frozenset()

    @property
    def first(self) -> Path:
        """Folder of the run with the first seed."""
        return next(iter(self.runs.values()))

    @property
    def corpus(self) -> str:
        """What it was trained on."""
        return read_run(self.first)["corpus"]

    @property
    def training_tokens(self) -> int:
        """How many tokens it was trained on, repeats counted."""
        told = read_run(self.first)["identity"]
        return told["steps"] * told["batch_size"] * told["sequence_length"]

    @property
    def training(self) -> dict[str, str]:
        """What is recorded of how it was trained, in words: the text, and the recipe."""
        told = read_run(self.first)["identity"]
        fields = {name: value for name, value in told.items() if name not in SAID_OTHERWISE}
        fields |= {"corpus_hash": str(told["tokens"].get("corpus_hash"))[:12]}
        return {name: "tuned" if name in self.tuned else str(value) for name, value in fields.items()}


def compared(places: list[str], weights_dir: Path) -> str:
    """Return a table of studies and runs, and a sentence for each pair.

    Args:
        places: folders of studies or runs, or names of runs under `weights_dir`.
        weights_dir: holds the trained models.

    Raises:
        UserError: something else stands there, runs without scores, or runs scored on different texts.
    """
    folders: dict[Path, str] = {}
    for place in places:
        folders.setdefault(folder_of(place, weights_dir).resolve(), place)
    contestants = [one for place in folders.values() for one in contestants_of(place, weights_dir)]
    for one in contestants:
        check_runs(one)
    check_texts(contestants)
    tokenizers = {file_hash(folder / "tokenizer.json") for one in contestants for folder in one.runs.values()}
    rows = [row(one, per_word=len(tokenizers) == 1) for one in contestants]
    first = next(iter(contestants[0].tests.values()))
    measure = measure_of(first)
    amounts = {one.name: {seed: measure.amounts(test) for seed, test in one.tests.items()} for one in contestants}
    differences = compare(amounts, measure.weights(first), measure=measure)
    said = [*reservations(contestants, len(tokenizers)), *(f"- {difference.sentence}" for difference in differences)]
    return "\n".join([table(rows), "", *said, *([HOW_TOLD_APART] if differences else [])])


def check_runs(one: Contestant) -> None:
    """Refuse runs of which something is gone or changed that a comparison reads.

    Raises:
        UserError: there is one.
    """
    for folder in one.runs.values():
        if not read_run(folder):
            raise UserError(f"{folder / RUN_FILE} is missing or damaged; copy the folder again, or train it again")
        check_files(folder, "*.json")


def check_texts(contestants: list[Contestant]) -> None:
    """Refuse what was scored on different texts."""
    texts: dict[str, Contestant] = {}
    for one in contestants:
        for test in one.tests.values():
            texts.setdefault(test.text_sha256, one)
    if len(texts) > 1:
        a, b, *_ = texts.values()
        raise UserError(
            f"{a.name} (trained on {a.corpus}) and {b.name} (trained on {b.corpus}) were scored on different texts, "
            "which does not compare; score both on one: mla-experiments eval A B --corpus FILE"
        )


def reservations(contestants: list[Contestant], num_tokenizers: int) -> list[str]:
    """Say what makes a comparison less than one of mechanisms."""
    said, budgets = [], {one.training_tokens for one in contestants}
    if num_tokenizers > 1:
        said.append("Tokenizers differ: bits per byte alone are shown, which do not depend on how text is cut.")
    if len(budgets) > 1:
        said.append(
            f"Training differs, from {min(budgets):,} to {max(budgets):,} tokens: what follows compares budgets, not "
            "mechanisms alone."
        )
    if others := other_training([one.training for one in contestants]):
        said.append(f"Training differs in {', '.join(others)}: what follows compares that too, not mechanisms alone.")
    return said


def other_training(trained: list[dict[str, str]]) -> list[str]:
    """Return in which fields that all recorded trainings differ, with the values that there are."""
    recorded = [name for name in trained[0] if all(name in one for one in trained)]
    values = {name: dict.fromkeys(one[name] for one in trained) for name in recorded}
    return [f"{name} ({', '.join(found)})" for name, found in sorted(values.items()) if len(found) > 1]


def folder_of(place: str, weights_dir: Path) -> Path:
    """Return the folder that a place names: a path, or a run under `weights_dir`."""
    return Path(place) if Path(place).is_dir() else weights_dir / place


def contestants_of(place: str, weights_dir: Path) -> list[Contestant]:
    """Return the variants of a study, each at its best learning rate, or a single run."""
    folder = folder_of(place, weights_dir)
    if (folder / STUDY).is_file():
        found = read_findings(folder)
        mark = f" (unfinished: {found.unfinished} runs to do)" if found.unfinished else ""
        return [
            Contestant(
                f"{place}: {row.name}{mark}",
                row.runs,
                {seed: one["test"] for seed, one in row.scores.items()},
                tuned_of(found, row.name),
            )
            for row in found.rows
        ]
    if not (recorded := read_run(folder)):
        raise UserError(f"{place} is neither a study nor a run; give folders that hold {STUDY} or {RUN_FILE}")
    scores = read_scores(folder)
    if scores is None:
        raise UserError(f"{place} has not been scored; do it with: mla-experiments eval {place}")
    seed = recorded["identity"]["seed"]
    return [Contestant(place, {seed: folder}, {seed: scores["test"]})]


def tuned_of(found: Findings, name: str) -> frozenset[str]:
    """Return the fields of which a variant of a study tried several values."""
    tried = found.content["stated"]["designs"][found.variant(name)["variant"]["attention"]]
    return frozenset(field for field in tried[0] if len({str(one.get(field)) for one in tried}) > 1)


def row(one: Contestant, per_word: bool) -> dict:
    """Return a line of the table."""
    config, tests = DecoderConfig.from_pretrained(one.first), list(one.tests.values())
    measure = measure_of(tests[0])
    values = {
        "name": one.name,
        "attention": config.attention,
        "trained on": one.corpus,
        "training tokens": one.training_tokens,
        "parameters": num_parameters(config),
        "seeds": len(tests),
    }
    if per_word and tests[0].words is not None:
        nats = np.array([test.nats for test in tests])
        values["ppl/word"] = shown(estimate(perplexity_per_word(nats, tests[0].words).tolist()), 1)
    amounts = np.array([measure.amounts(test) for test in tests])
    values[measure.heading] = shown(estimate(ratio(amounts, measure.weights(tests[0])).tolist()), 4, measure.ends)
    values["cache numbers/token"] = cache_elements_per_token(config)
    return values
