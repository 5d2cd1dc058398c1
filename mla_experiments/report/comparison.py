"""Several studies and runs side by side, as far as they can be compared."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..benchmark.costs import cache_elements_per_token, num_parameters
from ..benchmark.measure import table
from ..errors import UserError
from ..evaluation.scores import SplitScores, read_scores
from ..manifest import file_hash
from ..modeling import DecoderConfig
from ..run_files import RUN_FILE, read_run
from ..study.record import STUDY
from ..study.statistics import bits_per_byte, compare, estimate, perplexity_per_word
from .study import HOW_TOLD_APART, read_findings, shown


@dataclass(frozen=True)
class Contestant:
    """Runs that differ in their seed alone, and the name under which they are shown."""

    name: str
    folders: list[Path]

    @property
    def config(self) -> DecoderConfig:
        """That of the first run."""
        return DecoderConfig.from_pretrained(self.folders[0])

    @property
    def corpus(self) -> str:
        """What it was trained on."""
        return read_run(self.folders[0])["corpus"]

    @property
    def tests(self) -> list[SplitScores]:
        """The scores of the test split, by seed."""
        return [read_scores(folder)["test"] for folder in self.folders]


def compared(places: list[str], weights_dir: Path) -> str:
    """Return a table of studies and runs, and a sentence for each pair.

    Args:
        places: folders of studies or runs, or names of runs under `weights_dir`.
        weights_dir: holds the trained models.

    Raises:
        UserError: something else stands there, runs without scores, or runs scored on different texts.
    """
    contestants = [one for place in places for one in contestants_of(place, weights_dir)]
    texts = {}
    for one in contestants:
        for test in one.tests:
            texts.setdefault(test.text_sha256, one)
    if len(texts) > 1:
        a, b, *_ = texts.values()
        raise UserError(
            f"{a.name} (trained on {a.corpus}) and {b.name} (trained on {b.corpus}) were scored on different texts, "
            "which does not compare; score both on one: mla-experiments eval A B --corpus FILE"
        )
    tokenizers = {file_hash(folder / "tokenizer.json") for one in contestants for folder in one.folders}
    rows = [row(one, per_word=len(tokenizers) == 1) for one in contestants]
    lines = [table(rows), ""]
    if len(tokenizers) > 1:
        lines.append("Tokenizers differ: bits per byte alone are shown, which do not depend on how text is cut.")
    nats = {one.name: np.array([test.nats for test in one.tests]) for one in contestants}
    differences = compare(nats, contestants[0].tests[0].bytes)
    lines += [f"- {difference.sentence}" for difference in differences]
    return "\n".join([*lines, HOW_TOLD_APART] if differences else lines)


def contestants_of(place: str, weights_dir: Path) -> list[Contestant]:
    """Return the variants of a study, each at its best learning rate, or a single run."""
    folder = Path(place) if Path(place).is_dir() else weights_dir / place
    if (folder / STUDY).is_file():
        findings = read_findings(folder)
        mark = f" (unfinished: {findings.unfinished} runs to do)" if findings.unfinished else ""
        return [Contestant(f"{folder.name}: {name}{mark}", runs) for name, runs in findings.chosen.items()]
    if not read_run(folder):
        raise UserError(f"{place} is neither a study nor a run; give folders that hold {STUDY} or {RUN_FILE}")
    if read_scores(folder) is None:
        raise UserError(f"{place} has not been scored; do it with: mla-experiments eval {place}")
    return [Contestant(place, [folder])]


def row(one: Contestant, per_word: bool) -> dict:
    """Return a line of the table."""
    config, tests = one.config, one.tests
    nats = np.array([test.nats for test in tests])
    values = {
        "name": one.name,
        "attention": config.attention,
        "trained on": one.corpus,
        "parameters": f"{num_parameters(config):,}",
        "seeds": len(tests),
    }
    if per_word:
        values["ppl/word"] = shown(estimate(perplexity_per_word(nats, tests[0].words).tolist()), 1)
    values["bits/byte"] = shown(estimate(bits_per_byte(nats, tests[0].bytes).tolist()), 4)
    values["cache numbers/token"] = f"{cache_elements_per_token(config):,}"
    return values
