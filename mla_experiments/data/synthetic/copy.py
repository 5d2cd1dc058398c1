"""Copying (Jelassi et al. 2024, Repeat After Me, arXiv 2402.01032, §4.1).

    a b c d | a b c d .   x y | x y .

A string of random characters, a bar, and the string again. Strings of all lengths up to the longest follow each other
in a row; the last may be cut off. How well longer strings are copied than were trained on is what the paper is about.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from .task import END, Rows, Task, begun, examples

BAR = 1


@dataclass(frozen=True)
class Copy(Task):
    """Say a string again.

    Attributes:
        longest: string, in characters.
        shortest: string.
        characters: how many there are.
    """

    name: ClassVar[str] = "copy"
    meaning: ClassVar[str] = "say a string again"
    source: ClassVar[str] = "Repeat After Me, arXiv 2402.01032"
    difficulty: ClassVar[str] = "longest"
    asks_any_model: ClassVar[bool] = True

    longest: int = 16
    shortest: int = 1
    characters: int = 26

    def check(self) -> None:
        """Refuse a shortest string above the longest."""
        self.at_most("shortest", self.longest, "longest")

    @property
    def least_length(self) -> int:
        """The longest string, twice, with bar and end."""
        return 2 * self.longest + 2

    @property
    def num_symbols(self) -> int:
        """End, bar, characters."""
        return 2 + self.characters

    @property
    def chance(self) -> float:
        """Any character."""
        return 1 / self.characters

    def conditions(self, length: int) -> dict[str, tuple[Task, int]]:
        """Strings of one length each, up to four times the longest that was trained on, in rows that hold them."""
        return self.by_difficulty(length)

    @property
    def steps(self) -> list[int]:
        """Half of the longest that was trained on, up to four times as long."""
        return sorted({max(1, quarters * self.longest // 4) for quarters in (2, 4, 5, 6, 8, 16)})

    def with_field(self, value: int) -> "Copy":
        """Return the task of strings of one length."""
        return replace(self, longest=value, shortest=value)

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows: every place of a copy looks back by the length of its string and the bar."""
        most = -(-length // (2 * self.shortest + 2))
        sizes = generator.integers(self.shortest, self.longest + 1, (count, most))
        number, place = examples(2 * sizes + 2, length)
        size = np.take_along_axis(sizes, number, axis=1)
        is_copy = (place > size) & (place <= 2 * size)
        origin = np.arange(length) - np.where(is_copy, size + 1, 0)
        symbols = np.take_along_axis(generator.integers(2, self.num_symbols, (count, length)), origin, axis=1)
        symbols[place == size] = BAR
        symbols[place == 2 * size + 1] = END
        return begun(symbols, is_copy)
