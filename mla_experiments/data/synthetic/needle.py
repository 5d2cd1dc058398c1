"""Needles in a haystack (Hsieh et al. 2024, RULER, arXiv 2404.06654, §3, single and multi-key retrieval, in small).

    . . . ! k v v . . . . . ! k v v . . . ? k v v

Needles, each a key with its value, stand somewhere in a long noise; at the end one key is asked for.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from .task import Rows, Task, begun, distinct

HERE, ASKED = 1, 2  # the signs before a key
ANY = -1.0  # depth
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Needle(Task):
    """Find what was hidden in noise.

    Attributes:
        needles: how many are hidden; one of them is asked for.
        value: symbols of a value.
        depth: where the one that is asked for stands: 0 at the beginning, 1 just before the question, -1 anywhere.
        keys: how many there are.
        noise: symbols of the noise.
    """

    name: ClassVar[str] = "needle"
    meaning: ClassVar[str] = "find what was hidden in noise"
    source: ClassVar[str] = "RULER, arXiv 2404.06654"
    difficulty: ClassVar[str] = "needles"
    asks_any_model: ClassVar[bool] = True

    needles: int = 2
    value: int = 2
    depth: float = field(default=ANY, metadata={"minimum": ANY, "maximum": 1.0})
    keys: int = 32
    noise: int = 32

    def check(self) -> None:
        """Refuse more needles than there are keys."""
        self.at_most("needles", self.keys, "keys")

    @property
    def size(self) -> int:
        """Symbols of a needle: sign, key, value."""
        return 2 + self.value

    @property
    def most(self) -> int:
        """So many keys there are."""
        return self.keys

    @property
    def least_length(self) -> int:
        """All needles, and the question with its answer."""
        return (self.needles + 1) * self.size

    @property
    def num_symbols(self) -> int:
        """End, signs, keys, values (as many as keys), noise."""
        return 3 + 2 * self.keys + self.noise

    @property
    def chance(self) -> float:
        """Any symbol of a value."""
        return 1 / self.keys

    def conditions(self, length: int) -> dict[str, tuple[Task, int]]:
        """Depths and lengths, each with each; then more needles."""
        grid = {
            f"depth={depth:g} length={times * length}": (replace(self, depth=depth), times * length)
            for times in (1, 2, 4)
            for depth in DEPTHS
        }
        return grid | self.by_difficulty(length)

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows: needles stand in slots of their own size; the first of them is the one asked for."""
        symbols = generator.integers(3 + 2 * self.keys, self.num_symbols, (count, length))
        keys = 3 + distinct(generator, self.needles, self.keys, count)
        values = 3 + self.keys + generator.integers(0, self.keys, (count, self.needles, self.value))
        slots = length // self.size - 1
        places = distinct(generator, self.needles, slots, count)
        if self.depth >= 0:
            wanted = round(self.depth * (slots - 1))
            taken = places[:, 1:] == wanted  # where another stands already, that one moves
            places[:, 1:] = np.where(taken, places[:, :1], places[:, 1:])
            places[:, 0] = wanted
        first = np.stack([np.full_like(keys, HERE), keys], axis=2)
        needles = np.concatenate([first, values], axis=2)  # [N, needles, size]
        at = (places * self.size)[..., None] + np.arange(self.size)
        np.put_along_axis(symbols, at.reshape(count, -1), needles.reshape(count, -1), axis=1)
        symbols[:, -self.size :] = needles[:, 0]
        symbols[:, -self.size] = ASKED
        answers = np.zeros(symbols.shape, dtype=bool)
        answers[:, -self.value :] = True
        return begun(symbols, answers)
