"""Sentences of a random context-free grammar (Allen-Zhu & Li 2023, Physics of Language Models: Part 1, arXiv
2305.13673, §2), whose entropy is known.

    root -> A3 A2 A3,  A3 -> b1 b2 | b2 b3 b1, ...

All rules of a level begin with two symbols that no other rule of the level begins with: what a sentence was derived by
can be read off it, so that it has one derivation, and its probability is the product of the rules'. What a model's loss
is above that is what it has not learnt.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from .task import END, Rows, Task, begun, examples

SHORT, LONG = 2, 3  # symbols that a rule gives


@dataclass(frozen=True)
class Grammar(Task):
    """Predict sentences of a grammar.

    Attributes:
        levels: of rules between a sentence and its symbols.
        kinds: of symbols on each level.
        rules: of a symbol, all as likely; every other one gives two symbols, the rest three.
        language: which of all such grammars.
    """

    name: ClassVar[str] = "grammar"
    meaning: ClassVar[str] = "predict sentences of a context-free grammar whose entropy is known"
    source: ClassVar[str] = "Physics of Language Models 1, arXiv 2305.13673"
    difficulty: ClassVar[str] = "levels"

    levels: int = field(default=3, metadata={"maximum": 6})
    kinds: int = field(default=3, metadata={"minimum": 2, "maximum": 256})
    rules: int = 2
    language: int = field(default=0, metadata={"minimum": 0})

    def check(self) -> None:
        """Refuse more rules than have beginnings of their own."""
        self.at_most("rules", self.kinds, "kinds, since no two rules begin alike")

    @property
    def least_length(self) -> int:
        """The longest sentence and its end."""
        return LONG**self.levels + 1

    @property
    def num_symbols(self) -> int:
        """End and the symbols of the lowest level."""
        return 1 + self.kinds

    @property
    def chance(self) -> float:
        """Any symbol."""
        return 1 / self.num_symbols

    def conditions(self, length: int) -> dict[str, tuple[Task, int]]:
        """Longer rows; another grammar is another thing to know."""
        return {f"length={times * length}": (self, times * length) for times in (2, 4)}

    @cached_property
    def productions(self) -> tuple[np.ndarray, np.ndarray]:
        """What each rule gives, `[levels, kinds, rules, 3]` from the highest level down, and how many symbols."""
        generator = np.random.default_rng(self.language)
        gives = generator.integers(0, self.kinds, (self.levels, self.kinds, self.rules, LONG))
        for level in gives:
            beginnings = generator.permutation(self.kinds**2)[: self.kinds * self.rules].reshape(level.shape[:2])
            level[..., 0], level[..., 1] = np.divmod(beginnings, self.kinds)
        sizes = np.where(np.arange(self.rules) % 2, LONG, SHORT)
        return gives, np.broadcast_to(sizes, (self.kinds, self.rules))

    def draw(self, generator: np.random.Generator, count: int, length: int) -> Rows:
        """Draw rows of sentences, each with its end; of the last one, cut off, no symbol is an answer."""
        each = -(-length // (SHORT**self.levels + 1))
        sentences, sizes, nats = self.sentences(generator, count * each)
        sizes = (sizes + 1).reshape(count, each)  # with their ends
        number, place = examples(sizes, length)
        begins = (np.cumsum(sizes) - sizes.ravel() - np.arange(sizes.size)).reshape(count, each)  # without ends
        last = np.take_along_axis(sizes, number, axis=1) - 1
        at = np.take_along_axis(begins, number, axis=1) + np.minimum(place, last - 1)
        symbols = np.where(place == last, END, 1 + sentences[at])
        is_whole = np.cumsum(sizes, axis=1) <= length
        entropy = (nats.reshape(count, each) * is_whole).sum(1)
        return begun(symbols, np.take_along_axis(is_whole, number, axis=1), entropy)

    def sentences(self, generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derive sentences.

        Returns:
            Their symbols one after another; for each its length, and minus the logarithm of its probability.
        """
        symbols = generator.integers(0, self.kinds, count)
        owner = np.arange(count)
        nats = np.full(count, math.log(self.kinds))
        gives, sizes = self.productions
        for level in gives:
            rule = generator.integers(0, self.rules, len(symbols))
            nats += math.log(self.rules) * np.bincount(owner, minlength=count)
            given, kept = level[symbols, rule], np.arange(LONG) < sizes[symbols, rule][:, None]
            symbols, owner = given[kept], np.repeat(owner, sizes[symbols, rule])
        return symbols, np.bincount(owner, minlength=count), nats
