"""Following a chain (RULER's variable tracking, arXiv 2404.06654, §3; Depo of Allen-Zhu 2025, Physics of Language
Models: Part 4.1, §2).

    c>a  b>d  a>b  d>c   2 c b   1 a b   3 b a

Names point at names, all in one circle, told in random order; a question gives a number of steps and where to start,
and where they lead has to follow. More steps ask for more layers, whatever is cached.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from .task import Rows, Task, begun, distinct

MOST = 16  # steps
ANY = 0


@dataclass(frozen=True)
class Hops(Task):
    """Follow a chain of names.

    Attributes:
        hops: the most steps that are asked for; all numbers of them alike.
        exactly: so many steps in every question; 0 for any.
        nodes: names in the circle.
        names: how many there are.
    """

    name: ClassVar[str] = "hops"
    meaning: ClassVar[str] = "follow a chain of names for some steps"
    source: ClassVar[str] = "RULER, arXiv 2404.06654; Physics of Language Models 4.1"
    difficulty: ClassVar[str] = "hops"

    hops: int = field(default=2, metadata={"maximum": MOST})
    exactly: int = field(default=ANY, metadata={"minimum": ANY, "maximum": MOST})
    nodes: int = field(default=8, metadata={"minimum": 2})
    names: int = 32

    def check(self) -> None:
        """Refuse more steps than lead to another name, or more names than there are."""
        self.at_most("hops", self.nodes - 1, "steps that lead to another name")
        self.at_most("exactly", self.hops, "hops")
        self.at_most("nodes", self.names, "names")

    @property
    def least_length(self) -> int:
        """All names with where they point, and a question."""
        return 2 * self.nodes + 3

    @property
    def num_symbols(self) -> int:
        """End, numbers of steps, names."""
        return 1 + MOST + self.names

    @property
    def chance(self) -> float:
        """Any other name of the circle."""
        return 1 / (self.nodes - 1)

    def conditions(self, length: int) -> dict[str, tuple[Task, int]]:
        """Every number of steps alone."""
        return {f"hops={steps}": (replace(self, exactly=steps), length) for steps in range(1, self.hops + 1)}

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows: the circle, told in random order, and as many questions as there is room for."""
        names = 1 + MOST + distinct(generator, self.nodes, self.names, count)  # in the order of the circle
        told = distinct(generator, self.nodes, self.nodes, count)
        following = np.roll(names, -1, axis=1)
        edges = np.stack([np.take_along_axis(part, told, axis=1) for part in (names, following)], axis=2)
        room = length - 2 * self.nodes
        questions = -(-room // 3)
        start = generator.integers(0, self.nodes, (count, questions))
        low, high = (self.exactly, self.exactly) if self.exactly else (1, self.hops)
        steps = generator.integers(low, high + 1, (count, questions))
        asked = np.take_along_axis(names, start, axis=1)
        reached = np.take_along_axis(names, (start + steps) % self.nodes, axis=1)
        asking = np.stack([steps, asked, reached], axis=2).reshape(count, -1)[:, :room]
        is_answer = np.arange(length) >= 2 * self.nodes
        is_answer &= (np.arange(length) - 2 * self.nodes) % 3 == 2
        symbols = np.concatenate([edges.reshape(count, -1), asking], axis=1)
        return begun(symbols, np.broadcast_to(is_answer, symbols.shape))
