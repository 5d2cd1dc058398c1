"""Looking up what followed (Jelassi et al. 2024, Repeat After Me, arXiv 2402.01032, §4.2, "prefix key").

    a d c b e a f | c b e a .

A string, a bar, a few characters in a row that stand in the string once, and what followed them there.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import UserError
from .copy import BAR
from .task import END, Rows, Task, begun


@dataclass(frozen=True)
class CopyNgram(Task):
    """Go on where a few characters stood.

    Attributes:
        string: its length.
        gram: characters that are named again.
        answer: characters that have to follow.
        characters: how many there are.
    """

    name: ClassVar[str] = "copy-ngram"
    meaning: ClassVar[str] = "say what followed a few characters in a string"
    source: ClassVar[str] = "Repeat After Me, arXiv 2402.01032"
    difficulty: ClassVar[str] = "string"
    asks_any_model: ClassVar[bool] = True

    string: int = 24
    gram: int = 2
    answer: int = 2
    characters: int = 26

    def check(self) -> None:
        """Refuse strings too short for their questions, or in which too little stands once."""
        if self.gram + self.answer > self.string:
            raise UserError(f"{self.name}: gram + answer is more than the string={self.string}; raise string")
        if self.characters**self.gram < 2 * self.string:
            raise UserError(f"{self.name}: gram={self.gram} of characters={self.characters} repeat too often; raise it")

    @property
    def steps(self) -> list[int]:
        """Strings from half as long to twice as long, as far as they hold what is asked and hold it once."""
        least, most = self.gram + self.answer, self.characters**self.gram // 2
        return sorted({min(max(least, half * self.string // 2), most) for half in (1, 2, 3, 4)})

    @property
    def size(self) -> int:
        """Symbols of an example: string, bar, question, answer, end."""
        return self.string + self.gram + self.answer + 2

    @property
    def least_length(self) -> int:
        """An example."""
        return self.size

    @property
    def num_symbols(self) -> int:
        """End, bar, characters."""
        return 2 + self.characters

    @property
    def chance(self) -> float:
        """Any character."""
        return 1 / self.characters

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows of examples, as many as there is room for; the last is cut off."""
        each = -(-length // self.size)
        strings = generator.integers(2, self.num_symbols, (count * each, self.string))
        begins = self.askable(generator, strings)
        asked = np.take_along_axis(strings, begins + np.arange(self.gram + self.answer), axis=1)
        parts = [strings, np.full_like(begins, BAR), asked, np.full_like(begins, END)]
        symbols = np.concatenate(parts, axis=1).reshape(count, -1)[:, :length]
        place = np.arange(length) % self.size
        is_answer = (place > self.string + self.gram) & (place < self.size - 1)
        return begun(symbols, np.broadcast_to(is_answer, symbols.shape))

    def askable(self, generator: np.random.Generator, strings: np.ndarray) -> np.ndarray:
        """Return where in each string a question begins `[N, 1]`; strings that nothing can be asked of are redrawn."""
        codes = sum(
            strings[:, place : self.string - self.gram + place + 1] * self.num_symbols**place
            for place in range(self.gram)
        )
        room = self.string - self.gram - self.answer + 1
        order = np.argsort(codes, axis=1)
        ordered = np.take_along_axis(codes, order, axis=1)
        differs = np.ones((len(codes), codes.shape[1] + 1), dtype=bool)
        differs[:, 1:-1] = ordered[:, 1:] != ordered[:, :-1]
        once = np.empty_like(codes, dtype=bool)
        np.put_along_axis(once, order, differs[:, 1:] & differs[:, :-1], axis=1)
        chosen = np.argmax(generator.random((len(codes), room)) * once[:, :room], axis=1)
        if (without := ~once[np.arange(len(codes)), chosen]).any():
            strings[without] = generator.integers(2, self.num_symbols, (int(without.sum()), self.string))
            chosen[without] = self.askable(generator, redrawn := strings[without])[:, 0]
            strings[without] = redrawn
        return chosen[:, None]
