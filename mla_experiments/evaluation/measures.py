"""What a comparison is of: bits per byte of text, wrong answers of synthetic tasks, or nats above a known entropy.

Each is a sum over documents (or drawn rows) divided by a sum of what it is spread over, and less is better.
"""

import math
from dataclasses import dataclass

import numpy as np

from .scores import SplitScores


@dataclass(frozen=True)
class Measure:
    """A ratio of sums.

    Attributes:
        name: after a number, "0.02 bits per byte".
        heading: of a column.
        axis: of a figure.
        amount: field of the scores that is summed.
        over: field that it is divided by.
        scale: times which.
        ends: the least and the most that it can be.
    """

    name: str
    heading: str
    axis: str
    amount: str
    over: str
    scale: float = 1.0
    ends: tuple[float, float] = (-math.inf, math.inf)

    @property
    def most_apart(self) -> float:
        """The largest difference that there can be."""
        return self.ends[1] - self.ends[0]

    def amounts(self, scores: SplitScores) -> np.ndarray:
        """Return what is summed, `[documents]`."""
        return getattr(scores, self.amount) * self.scale

    def weights(self, scores: SplitScores) -> np.ndarray:
        """Return what the sum is divided by, `[documents]`."""
        return getattr(scores, self.over)

    def of(self, scores: SplitScores) -> float:
        """Return the ratio."""
        return float(ratio(self.amounts(scores), self.weights(scores)))


BITS = Measure("bits per byte", "bits/byte", "bits per byte", "nats", "bytes", 1 / math.log(2), (0.0, math.inf))
WRONG = Measure("wrong per answer", "wrong", "share of answers wrong", "wrong", "tokens", ends=(0.0, 1.0))
EXCESS = Measure("nats a symbol above the entropy", "nats above entropy", "nats a symbol above the entropy", "excess",
                 "tokens")  # fmt: skip


def measure_of(scores: SplitScores) -> Measure:
    """Return what scores are compared by."""
    if scores.excess is not None:
        return EXCESS
    return BITS if scores.wrong is None else WRONG


def ratio(amounts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ratio of the sums of `[..., documents]` and `[documents]`."""
    return amounts.sum(-1) / weights.sum()
