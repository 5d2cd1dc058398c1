"""Induction (Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895, "A B ... A -> B").

    . . A b . . . C d . A b . . C d .

Signs stand in noise, each twice; what followed a sign the first time has to follow it the second time.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .task import Rows, Task, begun, distinct


@dataclass(frozen=True)
class Induction(Task):
    """Say what followed a sign the last time.

    Attributes:
        signs: in a row, each different.
        kinds: of signs that there are.
        noise: symbols of the noise, and of what follows a sign.
    """

    name: ClassVar[str] = "induction"
    meaning: ClassVar[str] = "say what followed a sign the last time"
    source: ClassVar[str] = "Induction Heads, arXiv 2209.11895"
    difficulty: ClassVar[str] = "signs"
    asks_any_model: ClassVar[bool] = True

    signs: int = 4
    kinds: int = 32
    noise: int = 32

    def check(self) -> None:
        """Refuse more signs than there are kinds."""
        self.at_most("signs", self.kinds, "kinds of signs")

    @property
    def most(self) -> int:
        """So many kinds there are."""
        return self.kinds

    @property
    def least_length(self) -> int:
        """Every sign and what follows it, twice."""
        return 4 * self.signs

    @property
    def num_symbols(self) -> int:
        """End, signs, noise."""
        return 1 + self.kinds + self.noise

    @property
    def chance(self) -> float:
        """Any symbol of the noise."""
        return 1 / self.noise

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows: places are slots of two symbols, dealt out to the signs at random."""
        symbols = generator.integers(1 + self.kinds, self.num_symbols, (count, length))
        signs = 1 + distinct(generator, self.signs, self.kinds, count)
        after = generator.integers(1 + self.kinds, self.num_symbols, (count, self.signs))
        slots = distinct(generator, 2 * self.signs, length // 2, count).reshape(count, 2, self.signs)
        at = 2 * slots
        np.put_along_axis(symbols, at.reshape(count, -1), np.tile(signs, 2), axis=1)
        np.put_along_axis(symbols, at.reshape(count, -1) + 1, np.tile(after, 2), axis=1)
        answers = np.zeros(symbols.shape, dtype=bool)
        np.put_along_axis(answers, at.max(1) + 1, True, axis=1)
        return begun(symbols, answers)
