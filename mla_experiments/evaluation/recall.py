"""How a model does at synthetic tasks: its answers on rows that training never draws, as trained and under conditions.

A model that was trained on a task is tried as it was trained (splits `validation` and `test`), at other difficulties
and in longer rows. A model of text is asked in words of its own tokenizer, where the answers stand in the row itself.
"""

import hashlib
import re
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data import beginning_of_text
from ..data.synthetic import BLOCK, END, TASKS, Rows, Task, task_named
from ..errors import UserError, unknown
from .scores import SplitScores

ROWS, FEWER = 256, 128  # of a split, and of a condition
BATCH_SYMBOLS = 16_384  # in a forward pass
WORD = re.compile(
    "[Ġ▁][a-z]{2,}"
)  # a token that is a word with the space before it, as byte-level BPE and Llama write it
PROBE_LENGTH = 256  # symbols in a row that a model of text is asked in
HELD = 0.9  # share of the answers that are right where a difficulty counts as held


def score_task(model: PreTrainedModel, task: Task, length: int, description: str = "scoring") -> dict[str, SplitScores]:
    """Score a model on the task that it was trained on.

    Args:
        model: on the device on which to compute.
        task: what it was trained on.
        length: of the rows that it was trained on.
        description: beside the progress bar.

    Returns:
        Scores by split and condition; those without that ask for more positions than were learned.
    """
    parts = {split: (task, length, split, ROWS) for split in ("validation", "test")}
    parts |= {name: (one, size, "test", FEWER) for name, (one, size) in task.conditions(length).items()}
    longest = model.config.max_position_embeddings if learns_positions(model) else None
    scored = {}
    for name, (one, size, split, count) in tqdm(parts.items(), description, unit=" conditions", leave=False):
        if longest is None or size <= longest:
            scored[name] = score_rows(model, one.block(size, split, 0, 0), count)
    return scored


def learns_positions(model: PreTrainedModel) -> bool:
    """Return whether a model has an embedding for each position, and none beyond."""
    return getattr(model.config, "positions", "rope") == "learned"


@torch.inference_mode()
def score_rows(model: PreTrainedModel, rows: Rows, count: int = BLOCK) -> SplitScores:
    """Score the first rows, each alone: what a model thinks of the answers, all before them given.

    Args:
        model: on the device on which to compute.
        rows: drawn.
        count: how many of them.
    """
    symbols, answers = rows.symbols[:count], rows.answers[:count]
    nats, wrong = np.zeros(len(symbols)), np.zeros(len(symbols), dtype=np.int64)
    at_once = max(1, BATCH_SYMBOLS // symbols.shape[1])
    for begin in range(0, len(symbols), at_once):
        part = torch.from_numpy(symbols[begin : begin + at_once].astype(np.int64)).to(model.device)
        asked = torch.from_numpy(answers[begin : begin + at_once].copy()).to(model.device)[:, 1:]
        logits = answer_logits(model, part[:, :-1], asked)
        labels = part[:, 1:][asked]
        lost = F.cross_entropy(logits.double(), labels, reduction="none").cpu().numpy()
        missed = (logits.argmax(-1) != labels).cpu().numpy()
        owner = begin + asked.nonzero()[:, 0].cpu().numpy()
        np.add.at(nats, owner, lost)
        np.add.at(wrong, owner, missed)
    excess = None if rows.entropy is None else nats - rows.entropy[:count]
    return SplitScores(rows_hash(symbols, answers), nats, answers.sum(1), wrong=wrong, excess=excess)


def answer_logits(model: PreTrainedModel, inputs: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Return the logits `[answers, vocabulary]` before each answer, through the cache where that is in fewer bits.

    Args:
        model: ours or stock.
        inputs: `[B, T]`.
        asked: `[B, T]`, whether an answer follows.
    """
    through_cache = getattr(model.model, "cache_dtype", None) is not None
    states = model.model(inputs, use_cache=through_cache)[0]
    return model.lm_head(states[asked]).float()


def rows_hash(symbols: np.ndarray, answers: np.ndarray) -> str:
    """Return a hash of rows and of where their answers are."""
    parts = (symbols.astype(np.int64), answers.astype(np.uint8))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, names: list[str]
) -> Iterator[tuple[Task, str, SplitScores]]:
    """Ask a model of text what stands in rows of its own words; yields task, condition and scores.

    Args:
        model: on the device on which to compute.
        tokenizer: its own.
        names: of tasks.

    Raises:
        UserError: a task whose answers do not stand in the row or whose rows are longer than the model's context, or
            a tokenizer of too few words.
    """
    context = model.config.max_position_embeddings
    for name in names:
        task = probing(name)
        length = max(task.least_length, min(PROBE_LENGTH, context // 4))
        if length > context:
            raise UserError(
                f"max_position_embeddings={context} of the model is too short for {name}, whose rows take {length} "
                f"symbols; leave {name} out of --tasks"
            )
        words = words_of(tokenizer, task.num_symbols)
        conditions = {"as usual": (task, length)} | task.conditions(length)
        for condition, (one, size) in tqdm(conditions.items(), name, unit=" conditions", leave=False):
            if size <= context:
                drawn = one.block(size, "test", 0, 0)
                rows = Rows(words[drawn.symbols], drawn.answers)
                yield task, condition, score_rows(model, rows, FEWER)


def share_right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> float:
    """Return how many of a task's answers a model of text gets right, as it is usually asked; see `probe`."""
    _, _, scores = next(probe(model, tokenizer, [name]))
    return 1 - float(scores.wrong_answers.sum() / scores.tokens.sum())


def probing(name: str, asked_by: str = "tasks") -> Task:
    """Return a task that a model of text can be asked.

    Args:
        name: of the task.
        asked_by: the field that names it.

    Raises:
        UserError: there is none of that name, or its answers are not in the row.
    """
    askable = [task.name for task in TASKS.values() if task.asks_any_model]
    if name not in askable:
        raise unknown(asked_by, name, askable)
    return task_named(name, {})


def words_of(tokenizer: PreTrainedTokenizerFast, count: int) -> np.ndarray:
    """Return tokens that stand for the symbols of a task: whole words, spread over the vocabulary.

    Raises:
        UserError: there are too few.
    """
    found = sorted(number for token, number in tokenizer.get_vocab().items() if WORD.fullmatch(token))
    if len(found) < count:
        raise UserError(
            f"the tokenizer has {len(found)} whole words, and the task asks for {count}; train a larger vocabulary"
        )
    chosen = np.array(found)[np.linspace(0, len(found) - 1, count).astype(int)]
    chosen[END] = beginning_of_text(tokenizer)
    return chosen
