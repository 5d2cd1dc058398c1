"""How fast rows of synthetic tasks are drawn, beside what a step of training takes to use them."""

from dataclasses import dataclass

import torch

from ..data.synthetic import BLOCK, TASKS, task_named
from ..modeling import DecoderConfig, DecoderForCausalLM
from ..training.rows import DrawnRows
from .measure import flag, interleaved, spread
from .training import step_on_batches

FIGURE = None


@dataclass
class Arguments:
    """Symbols per second of each synthetic task, and its share of the time of a training step."""

    tasks: list[str] = flag(list(TASKS), "which")
    sequence_length: int = flag(128, "symbols in a row")
    batch_size: int = flag(64, "rows in a step")
    hidden_size: int = flag(64, "width of the model that is trained, of two layers of MLA")
    rounds: int = flag(9, "timed turns of each")


def measure(given: Arguments) -> list[dict]:
    """Return a row per task."""
    return [measure_task(name, given) for name in given.tasks]


def measure_task(name: str, given: Arguments) -> dict:
    """Return how fast a task draws, and how fast a model trains on what is drawn and on rows that lie ready."""
    task = task_named(name, {})
    length = max(given.sequence_length, task.least_length)
    config = DecoderConfig(
        vocab_size=task.num_symbols, hidden_size=given.hidden_size, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=length,
    )  # fmt: skip
    step, number = step_on_batches(DecoderForCausalLM(config)), iter(range(1 << 30))
    rows = DrawnRows(task, length, 1 << 30, "train")
    ready = batch_of(rows, range(given.batch_size))

    def drawn():
        first = next(number) * given.batch_size
        step(batch_of(rows, range(first, first + given.batch_size)))

    turns = {"drawing": lambda: task.block(length, "train", 0, 0), "drawn": drawn, "ready": lambda: step(ready)}
    times = {name: spread(seconds)["ms"] for name, seconds in interleaved(turns, given.rounds).items()}
    symbols = given.batch_size * length
    return {
        "task": name,
        "symbols in a row": length,
        "drawn, M symbols/s": BLOCK * length / times["drawing"] / 1e3,
        "trained on drawn rows, symbols/s": 1e3 * symbols / times["drawn"],
        "on rows that lie ready, symbols/s": 1e3 * symbols / times["ready"],
        "ratio": times["ready"] / times["drawn"],
    }


def batch_of(rows: DrawnRows, places: range) -> dict[str, torch.Tensor]:
    """Return rows as a batch of inputs and labels."""
    parts = [rows[place] for place in places]
    return {name: torch.stack([part[name] for part in parts]) for name in ("input_ids", "shift_labels")}
