"""Sums modulo a number (after Mano of Allen-Zhu 2025, Physics of Language Models: Part 4.1, §2): a control.

    a b = c   d e = f   ...

What a sum comes to stands nowhere in the row: it is knowledge in the weights, and no cache helps or hurts it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .task import Rows, Task, begun

EQUALS = 1


@dataclass(frozen=True)
class Sums(Task):
    """Add modulo a number.

    Attributes:
        modulus: what sums are taken modulo.
        terms: of a sum.
    """

    name: ClassVar[str] = "sums"
    meaning: ClassVar[str] = "add modulo a number, which is in the weights and not in the cache"
    source: ClassVar[str] = "Physics of Language Models 4.1"
    difficulty: ClassVar[str] = "modulus"

    modulus: int = field(default=23, metadata={"minimum": 2, "maximum": 4096})
    terms: int = field(default=2, metadata={"minimum": 1, "maximum": 64})

    @property
    def size(self) -> int:
        """Symbols of a sum."""
        return self.terms + 2

    @property
    def least_length(self) -> int:
        """One sum."""
        return self.size

    @property
    def num_symbols(self) -> int:
        """End, the sign, numbers."""
        return 2 + self.modulus

    @property
    def chance(self) -> float:
        """Any number."""
        return 1 / self.modulus

    def conditions(self, length: int) -> dict[str, tuple[Task, int]]:
        """None: another modulus is another thing to know."""
        return {}

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows of sums; the last is cut off."""
        each = -(-length // self.size)
        terms = generator.integers(0, self.modulus, (count, each, self.terms))
        total = terms.sum(2, keepdims=True) % self.modulus
        sums = np.concatenate([2 + terms, np.full_like(total, EQUALS), 2 + total], axis=2)
        symbols = sums.reshape(count, -1)[:, :length]
        is_answer = np.arange(length) % self.size == self.size - 1
        return begun(symbols, np.broadcast_to(is_answer, symbols.shape))
