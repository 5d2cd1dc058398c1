"""Multi-query associative recall (Arora et al. 2023, Zoology, arXiv 2312.04927, §4 and appendix B).

    k1 v1 k2 v2 ... kD vD   . . k2 v2 . kD vD . . k1 v1 .

Keys stand with their values first, each key once; then each is named again, and its value has to follow. Where it is
named again follows a power law, so that most come soon and some late. Between them stands noise, of symbols of its own.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .task import END, Rows, Task, distinct

NOISE = 16  # symbols


@dataclass(frozen=True)
class Mqar(Task):
    """Find the value that stood with a key, for several keys.

    Attributes:
        pairs: D.
        keys: how many keys there are; of values as many.
        power: of the law of the gaps, Zoology's `power_a`: at 1 all gaps are alike, towards 0 more are short.
    """

    name: ClassVar[str] = "mqar"
    meaning: ClassVar[str] = "find the values that stood with several keys"
    source: ClassVar[str] = "Zoology, arXiv 2312.04927"
    difficulty: ClassVar[str] = "pairs"
    asks_any_model: ClassVar[bool] = True

    pairs: int = 8
    keys: int = 64
    power: float = field(default=0.1, metadata={"minimum": 0.001, "maximum": 1.0})

    def check(self) -> None:
        """Refuse more pairs than there are keys."""
        self.at_most("pairs", self.keys, "keys")

    @property
    def most(self) -> int:
        """So many keys there are."""
        return self.keys

    @property
    def least_length(self) -> int:
        """Begin, all pairs, and all again."""
        return 4 * self.pairs

    @property
    def num_symbols(self) -> int:
        """End, keys, values, noise."""
        return 1 + 2 * self.keys + NOISE

    @property
    def chance(self) -> float:
        """One of the values that stand in the row."""
        return 1 / self.pairs

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows: a gap of every query is a slot of two symbols, chosen by the power law without putting back."""
        keys = 1 + distinct(generator, self.pairs, self.keys, count)
        values = 1 + self.keys + generator.integers(0, self.keys, (count, self.pairs))
        symbols = generator.integers(1 + 2 * self.keys, self.num_symbols, (count, length + 1))
        answers = np.zeros((count, length + 1), dtype=bool)
        symbols[:, 0] = END
        first = 1 + 2 * np.arange(self.pairs)
        symbols[:, first], symbols[:, first + 1] = keys, values
        slots = (length - 2 * self.pairs) // 2
        weights = self.power * np.arange(1, slots + 1) ** (self.power - 1)
        # Gumbel's trick: the largest of log-weights and noise are a draw without putting back
        places = np.log(weights / weights.sum()) - np.log(generator.exponential(size=(count, slots)))
        chosen = np.argpartition(-places, self.pairs - 1, axis=1)[:, : self.pairs]
        chosen = generator.permuted(chosen, axis=1)  # whose key is named where
        at = 1 + 2 * self.pairs + 2 * chosen
        np.put_along_axis(symbols, at, keys, axis=1)
        np.put_along_axis(symbols, at + 1, values, axis=1)
        np.put_along_axis(answers, at + 1, True, axis=1)
        return Rows(symbols, answers)
