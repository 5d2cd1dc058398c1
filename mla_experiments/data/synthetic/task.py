"""What a synthetic task is: its vocabulary, its difficulty as fields, and rows of symbols that are drawn, never stored.

A row is a text of its own. Some of its symbols are answers: what stands before determines them, so that a model which
finds it is right every time. Rows are arrays of whole numbers, drawn many at a time.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np

from ...errors import UserError

END = 0  # the symbol that begins a row, and ends what is in it; of every task
LARGEST = 1_000_000  # of any field
BLOCK = 256  # rows drawn together
SPLITS = {"train": 0, "validation": 1, "test": 2}  # what tells the random numbers of one from those of another


@dataclass(frozen=True)
class Rows:
    """Rows as they are drawn.

    Attributes:
        symbols: `[N, L + 1]`, what a model reads and predicts.
        answers: `[N, L + 1]`, whether a symbol is an answer; none of the first column is.
        entropy: `[N]`, nats that nobody can know of the answers of a row; None where that is 0.
    """

    symbols: np.ndarray
    answers: np.ndarray
    entropy: np.ndarray | None = None


@dataclass(frozen=True)
class Task(ABC):
    """A synthetic corpus. Its fields are the difficulty; the length of rows is that of the sequences of a run.

    Attributes:
        name: after `synthetic:`.
        meaning: one sentence for `--help` and reports.
        source: where it is from.
        difficulty: the field that a report draws accuracy against.
        asks_any_model: whether who never saw such rows can tell what is asked, by what repeats.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    source: ClassVar[str]
    difficulty: ClassVar[str]
    asks_any_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least, most = each.metadata.get("minimum", 1), each.metadata.get("maximum", LARGEST)
            if type(value) is not each.type and not (each.type is float and type(value) is int):
                raise UserError(f"{self.name}: {each.name}={value} must be a {WORDS[each.type]}")
            if not least <= value <= most:
                raise UserError(f"{self.name}: {each.name}={value} must be from {least:,} to {most:,}")
        self.check()

    def check(self) -> None:  # noqa: B027 (most tasks have something to check, not all)
        """Refuse fields that do not fit each other.

        Raises:
            UserError: see there.
        """

    def at_most(self, name: str, limit: int, what: str) -> None:
        """Refuse a field above a limit.

        Raises:
            UserError: it is.
        """
        if getattr(self, name) > limit:
            raise UserError(f"{self.name}: {name}={getattr(self, name)} is more than the {limit} {what}; lower {name}")

    def check_length(self, length: int) -> None:
        """Refuse a length of rows that does not hold what is asked.

        Raises:
            UserError: it is too short, and what would do.
        """
        if length < self.least_length:
            raise UserError(
                f"sequence_length={length} is too short for {self.corpus}, which takes {self.least_length} symbols; "
                f"raise --sequence_length or lower {self.difficulty}"
            )

    @property
    @abstractmethod
    def least_length(self) -> int:
        """The shortest rows that hold what is asked."""

    @property
    @abstractmethod
    def num_symbols(self) -> int:
        """Size of the vocabulary, `END` included."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The share of answers that are right by choosing among all that could be one."""

    def conditions(self, length: int) -> "dict[str, tuple[Task, int]]":
        """Return under what else a model is tried that was trained on rows of a length: tasks with lengths, by name."""
        return self.by_difficulty(length) | {f"length={times * length}": (self, times * length) for times in (2, 4)}

    def by_difficulty(self, length: int) -> "dict[str, tuple[Task, int]]":
        """Return easier and harder tasks, in rows that hold them."""
        tasks = [self.with_field(value) for value in self.steps]
        named = {f"{task.difficulty}={getattr(task, task.difficulty)}": task for task in tasks}
        return {name: (task, max(length, task.least_length)) for name, task in named.items()}

    @property
    def steps(self) -> list[int]:
        """Values of the field of difficulty at which a trained model is tried, ascending."""
        value = getattr(self, self.difficulty)
        return sorted({max(1, value // 4), max(1, value // 2), value, min(2 * value, self.most)})

    @property
    def most(self) -> int:
        """The largest value of the field of difficulty."""
        return LARGEST

    def with_field(self, value: int) -> "Task":
        """Return the task at another difficulty."""
        return replace(self, **{self.difficulty: value})

    @abstractmethod
    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows of `length + 1` symbols.

        Args:
            generator: of random numbers.
            count: how many.
            length: symbols that a model reads.
        """

    def block(self, length: int, split: str, seed: int, number: int) -> Rows:
        """Return one of the blocks of `BLOCK` rows of which a split is made, as a function of its number.

        Args:
            length: symbols that a model reads.
            split: train, validation or test, which never share random numbers.
            seed: of the order of training.
            number: of the block.
        """
        return self.draw(np.random.default_rng((SPLITS[split], seed, number)), BLOCK, length)

    @property
    def corpus(self) -> str:
        """The name of this corpus, with the fields that are not as usual."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ":".join(["synthetic", self.name, *([",".join(changed)] if changed else [])])


WORDS: dict[object, str] = {int: "whole number", float: "number", bool: "truth value"}


def distinct(generator: np.random.Generator, count: int, among: int, rows: int) -> np.ndarray:
    """Draw `count` different numbers below `among` for each row, in random order.

    Returns:
        `[rows, count]`.
    """
    return np.argsort(generator.random((rows, among), dtype=np.float32), axis=1)[:, :count]


def begun(symbols: np.ndarray, answers: np.ndarray, entropy: np.ndarray | None = None) -> Rows:
    """Return rows of `[N, L]` symbols with `END` before them."""
    before = np.zeros((len(symbols), 1), dtype=symbols.dtype)
    return Rows(np.concatenate([before, symbols], 1), np.concatenate([before > 0, answers], 1), entropy)


def examples(lengths: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay examples of given lengths one after another into rows; the last of a row is cut off at its end.

    Args:
        lengths: `[N, K]`, enough of them to fill a row.
        total: symbols in a row.

    Returns:
        The number of the example that every place belongs to, and the place in it: both `[N, total]`.
    """
    rows, most = lengths.shape
    ends = np.minimum(np.cumsum(lengths, axis=1), total)
    counts = np.diff(ends, axis=1, prepend=0)
    number = np.repeat(np.tile(np.arange(most), rows), counts.ravel()).reshape(rows, total)
    begins = np.take_along_axis(ends - counts, number, axis=1)
    return number, np.arange(total) - begins
