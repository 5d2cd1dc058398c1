"""A study for a question: which attention for this text, at this size and this budget of cache, in so many hours?

What is proposed is a study like any other, in a file that can be edited: grouped keys and values, one of each, and
latents at the budget, multi-head attention beside them for comparison; equal tuning of the learning rate, three seeds.
"""

import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..benchmark.costs import num_parameters
from ..data.corpora import MADE_BY
from ..data.synthetic import is_synthetic
from ..errors import UserError
from ..manifest import read_manifest
from ..modeling import DecoderConfig, device
from ..modeling.attention import ATTENTION, MISSION, find, plugins
from .description import Study, read_study
from .forecast import HOUR, tokens_per_second
from .matching import NEAR, Matched, match
from .runner import prepare_data
from .statistics import LEAST_DOCUMENTS
from .trials import Trials

HEADING = """# Proposed by `mla-experiments choose`; edit it and run it with `mla-experiments study`.
# Question: """
OF_TEXT = "# Text: "
SEEDS, TRIALS = (0, 1, 2), 3
SEQUENCE_LENGTH, BATCH_SIZE = 256, 8
LEAST_TOKENS = 100_000  # of a training, below which models have hardly begun to differ
MOST_PASSES = 4  # over the text; more would only learn it by heart
ONE_PASS = 0.9  # of the text, below which it is said how little that is
FOR_TRAINING = 0.8  # of the hours; the rest is scoring, validating and timing
HEADS = {64: 4, 128: 8, 512: 16}  # from a width on; a number with divisors, so that groups can be chosen
ABOUT_EACH_LAYER = 48  # width for each layer, as small models have
HALF = 0.5  # of the size that is asked for: a smallest model above twice it is refused


@dataclass(frozen=True)
class Question:
    """What somebody wants to know.

    Attributes:
        corpus: a text, as `data --corpus` takes it.
        cache_bytes_per_token: the budget, in single precision.
        parameters: of the model.
        hours: for everything.
        attention: what to choose among; the first is for comparison where it does not meet the budget.
    """

    corpus: str
    cache_bytes_per_token: int
    parameters: int
    hours: float
    attention: tuple[str, ...] = MISSION


def propose(question: Question, path: Path, root: Path) -> list[str]:
    """Write the study that answers a question; one that stands there for this very question is kept, edited or not.

    So the same command goes on with what it began, whose budget of tokens this machine's speed of that hour decided.

    Args:
        question: what is asked.
        path: of the YAML file.
        root: folder of studies.

    Returns:
        What was chosen, a sentence each.

    Raises:
        UserError: a text, a budget, a size or hours that give no answer, with what would; or a file for another
            question.
    """
    heading = HEADING + json.dumps(asdict(question), ensure_ascii=False) + "\n"
    if path.exists():
        if not (before := path.read_text(encoding="utf-8", errors="replace")).startswith(heading):
            raise UserError(f"{path} is there for another question, and is kept; move it away, or give --studies-dir")
        check_same_text(question, path, before, root)
        return [f"{path} stands for this question, and is gone on with as it is."]
    with tempfile.TemporaryDirectory() as scratch:  # nothing stands here before the question has an answer
        draft = Path(scratch) / path.name
        sentences, text = drafted(question, draft, root)
        path.parent.mkdir(parents=True, exist_ok=True)
        stated = draft.read_text(encoding="utf-8")
        path.write_text(f"{heading}{OF_TEXT}{text}\n{stated}", encoding="utf-8")
    return sentences


def check_same_text(question: Question, path: Path, stands: str, root: Path) -> None:
    """Refuse to go on with a study whose sizes and tokens were chosen for the text as it was.

    Args:
        question: what is asked.
        path: of the study's file.
        stands: what it says.
        root: folder of studies.

    Raises:
        UserError: the text has changed.
    """
    was = re.search(rf"^{OF_TEXT}(\w+)$", stands, re.MULTILINE)
    if was and prepared(read_study(path), root)["corpus"]["hash"] != was[1]:
        raise UserError(
            f"corpus={question.corpus} has changed since {path} was proposed for it; move that away to ask anew, or "
            f"run it as it is with: mla-experiments study {path}"
        )


def drafted(question: Question, path: Path, root: Path) -> tuple[list[str], str]:
    """Prepare the text, and write what `propose` writes; return the text's hash too. Arguments and errors as there."""
    if is_synthetic(question.corpus):
        raise UserError(
            f"corpus={question.corpus} is a task, and this chooses by how well text is predicted; state a study of it "
            "(docs/recall.md), or give text"
        )
    stated = {
        "corpus": question.corpus,
        "vocab_size": "auto",
        "preset": "demo",
        "attention": [lasting_name(name) for name in question.attention],
        "sequence_length": SEQUENCE_LENGTH,
    }
    data = prepared(written(path, stated), root)
    check_text(data, question.corpus)
    vocab_size = data["tokens"]["vocab_size"]
    stated |= shape_for(question.parameters, vocab_size)
    stated |= {"match": "cache", "cache_bytes_per_token": question.cache_bytes_per_token}
    stated |= {"batch_size": BATCH_SIZE, "per_device_train_batch_size": BATCH_SIZE}
    study = written(path, stated)
    solved = match(study, vocab_size)
    runs = TRIALS + len(SEEDS)
    tokens, speeds = tokens_within(question.hours, study, solved, runs, data["tokens"]["splits"]["train"]["tokens"])
    stated |= {
        "train_tokens": tokens,
        "warmup_tokens": tokens // 20,
        "optimizer": "muon",
        "initialization": "zero",
        "tuning": {"trials": TRIALS, "learning_rate": [2.0e-3, 2.0e-2]},
        "seeds": list(SEEDS),
    }
    written(path, stated)
    hours = runs * sum(tokens / speed for speed in speeds) / HOUR / FOR_TRAINING
    passes = tokens / data["tokens"]["splits"]["train"]["tokens"]
    sentences = [
        f"Text: {data['corpus']['splits']['train']['characters']:,} characters to train on, vocabulary {vocab_size:,}.",
        f"Model: {solved[0].parameters:,} parameters, {stated['num_hidden_layers']} layers, "
        f"{stated['hidden_size']} wide.",
        f"Cache, of {question.cache_bytes_per_token:,} bytes a token: {', '.join(map(of_budget, solved))}.",
        f"Each trains {runs} times on {tokens:,} tokens: {TRIALS} learning rates, then {len(SEEDS)} seeds with the "
        f"best. That takes about {hours:.1f} hours on this machine.",
        *([few_passes(passes, hours)] if passes < ONE_PASS else []),
    ]
    return sentences, data["corpus"]["hash"]


def lasting_name(name: str) -> str:
    """Return by what a process that nobody tells anything finds a mechanism: one from a file by the file and its class.

    Args:
        name: of the mechanism, which the command line has made of what was typed.
    """
    if name in ATTENTION and plugins.source_of(ATTENTION[name]) is None:
        return name
    return next((named for named in plugins.handed_on() if find(named) == name), name)


def few_passes(passes: float, hours: float) -> str:
    """Say that models see a part of the text only, and what a whole pass takes."""
    return (
        f"That is {100 * passes:.0f} % of the text, and models so little trained differ less than they would in the "
        f"end. One pass takes about {hours / passes:.1f} hours, or give a smaller --params."
    )


def written(path: Path, stated: dict) -> Study:
    """Write a study's file, and return what it states."""
    lines = yaml.safe_dump(stated, sort_keys=False, default_flow_style=None, allow_unicode=True)
    path.write_text(lines, encoding="utf-8")
    return read_study(path)


def prepared(study: Study, root: Path) -> dict[str, dict]:
    """Prepare a study's text, and return the manifests of corpus and tokens."""
    (corpus,) = study.corpora
    folder = Trials(study, root).data_of(corpus)
    prepare_data(study, corpus, folder)
    return {stage: read_manifest(folder / stage, MADE_BY) for stage in ("corpus", "tokens")}


def check_text(data: dict[str, dict], corpus: str) -> None:
    """Refuse a text that is too small for any answer.

    Raises:
        UserError: it has too few documents to test on, or too few tokens to train on.
    """
    documents = data["corpus"]["splits"]["test"]["documents"]
    if documents < LEAST_DOCUMENTS:
        characters = data["corpus"]["splits"]["test"]["characters"]
        raise UserError(
            f"corpus={corpus} leaves {documents} documents ({characters:,} characters) to test on, and a verdict takes "
            f"{LEAST_DOCUMENTS}; give about {-(-LEAST_DOCUMENTS // max(1, documents))} times as much text"
        )
    tokens = data["tokens"]["splits"]["train"]["tokens"]
    if MOST_PASSES * tokens < LEAST_TOKENS:
        raise UserError(
            f"corpus={corpus} has {tokens:,} tokens to train on, and an answer takes {LEAST_TOKENS // MOST_PASSES:,}; "
            f"give about {-(-LEAST_TOKENS // MOST_PASSES // tokens)} times as much text"
        )


def shape_for(parameters: int, vocab_size: int) -> dict[str, Any]:
    """Return the sizes of the model that is nearest to a number of parameters.

    Raises:
        UserError: the smallest model is far larger.
    """
    shapes: list[dict[str, Any]] = [
        {
            "hidden_size": width,
            "num_attention_heads": max(heads for least, heads in HEADS.items() if width >= least),
            "num_hidden_layers": max(2, round(width / ABOUT_EACH_LAYER)),
        }
        for width in range(min(HEADS), 2048 + 1, 32)
    ]
    sizes = []
    for shape in shapes:
        sizes.append(num_parameters(DecoderConfig(vocab_size=vocab_size, attention=MISSION[0], **shape)))
        if sizes[-1] > 2 * parameters:
            break
    place = min(range(len(sizes)), key=lambda number: abs(sizes[number] - parameters))
    if parameters < HALF * sizes[place]:
        raise UserError(
            f"params={parameters:,} is less than half of the smallest model for a vocabulary of {vocab_size:,} "
            f"entries; give {sizes[place]:,} or more"
        )
    return shapes[place]


def tokens_within(
    hours: float, study: Study, solved: list[Matched], runs: int, tokens_of_text: int
) -> tuple[int, list[float]]:
    """Return how many tokens each run can train on, and how many a second each variant trains on.

    Raises:
        UserError: too few to tell anything, and how many hours it takes.
    """
    speeds = [tokens_per_second(study, matched, str(device())) for matched in solved]
    seconds_a_token = runs * sum(1 / speed for speed in speeds)
    possible = int(FOR_TRAINING * hours * HOUR / seconds_a_token)
    if possible < LEAST_TOKENS:
        needed = LEAST_TOKENS * seconds_a_token / FOR_TRAINING / HOUR
        raise UserError(
            f"hours={hours:g} is enough for {possible:,} tokens in each of {runs * len(solved)} trainings, and an "
            f"answer takes {LEAST_TOKENS:,}; give --hours {needed:.1f} or a smaller --params"
        )
    step = BATCH_SIZE * SEQUENCE_LENGTH
    return min(possible, MOST_PASSES * tokens_of_text) // step * step, speeds


def of_budget(matched: Matched) -> str:
    """Return a variant with its cache, and whether that is above the budget."""
    above = " (above it, for comparison)" if (matched.cache_residual or 0) > NEAR else ""
    return f"{matched.variant.name} {matched.cache_bytes_per_token:,}{above}"
