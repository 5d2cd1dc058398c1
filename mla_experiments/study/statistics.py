"""How sure a study is: intervals over seeds, paired comparisons over seeds and documents.

What counts is a measure of the test split: of text bits per byte, which compares across tokenizers, of synthetic
tasks the share of answers that are wrong, drawn rows taking the place of documents. What is promised of intervals and
verdicts is held to in `benchmarks/coverage.py`, by studies whose truth is known.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.special import nctdtrinc, stdtr, stdtrit  # Student's t: what scipy.stats calls, at a tenth of the time

from ..evaluation.measures import BITS, Measure, ratio

CONFIDENCE = 0.95
POWER = 0.8
LEAST_SEEDS, LEAST_DOCUMENTS = 3, 10  # with fewer, nothing is known of how they vary
LEAST_P = 0.0001  # that is shown
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds and the half-width of its interval; None where one seed says nothing of the spread."""

    mean: float
    half_width: float | None


def estimate(values: list[float]) -> Estimate:
    """Return the mean of one value per seed and its Student t interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None)
    error = stats.sem(values)
    return Estimate(mean, float(stats.t.interval(CONFIDENCE, len(values) - 1, scale=error)[1]) if error > 0 else 0.0)


def perplexity_per_word(nats: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return exp(nats / words) of nats `[..., documents]` and words `[documents]`."""
    return np.exp(nats.sum(-1) / words.sum())


@dataclass(frozen=True)
class Spread:
    """A standard error of a difference, and its degrees of freedom."""

    error: float
    freedom: float

    def p(self, difference: float) -> float:
        """Return the two-sided p-value of no difference."""
        if self.error == 0:  # the same weights, or exactly the same distance for every seed and document
            return float(difference == 0)
        return float(2 * stdtr(self.freedom, -abs(difference) / self.error))

    def reach(self, tail: float) -> float:
        """Return by how much an interval reaches to each side that misses the truth there with probability `tail`."""
        return -float(stdtrit(self.freedom, tail)) * self.error if self.error else 0.0

    def detectable(self, tail: float) -> float:
        """Return the true difference that such an interval leaves 0 out for, 80 times in 100, if the error is true.

        Student's t of a true difference is the noncentral one, which of few seeds is far wider than t itself.
        """
        return self.error * float(nctdtrinc(self.freedom, 1 - POWER, -stdtrit(self.freedom, tail)))


@dataclass(frozen=True)
class Comparison:
    """Whether B is worse than A (difference > 0), with its interval and p-value.

    Attributes:
        a: name of A.
        b: name of B.
        difference: B's mean minus A's.
        seeds: its spread when other seeds alone are drawn; None where there is one.
        documents: the same of documents; None where there are fewer than ten.
        both: when both are; None where there are too few of one of them, and then there is no verdict.
        lacks: what there are too few of, in words; empty where there are enough.
        measure: what it is a difference of.
        pairs: how many pairs are tested together.
    """

    a: str
    b: str
    difference: float
    seeds: Spread | None
    documents: Spread | None
    both: Spread | None
    lacks: str
    measure: Measure = BITS
    pairs: int = 1

    @property
    def unit(self) -> str:
        """Of the difference, after a number."""
        return self.measure.name

    @property
    def _spreads(self) -> tuple[Spread, ...]:
        """Those that there are: where by chance three seeds agree, `both` would take them for many."""
        return tuple(spread for spread in (self.both, self.seeds, self.documents) if spread is not None)

    @property
    def p(self) -> float | None:
        """The p-value of no difference, times the number of pairs (Bonferroni); None without a verdict."""
        if self.both is None:
            return None
        return min(1.0, self.pairs * max(spread.p(self.difference) for spread in self._spreads))

    @property
    def interval(self) -> Interval | None:
        """Holds the difference together with those of all pairs 95 times in 100: 0 is outside exactly where p < 5 %."""
        return self._around(self.both, *self._spreads, tail=(1 - CONFIDENCE) / 2 / self.pairs)

    @property
    def over_seeds(self) -> Interval | None:
        """For other seeds alone, and this pair alone."""
        return self._around(self.seeds)

    @property
    def over_documents(self) -> Interval | None:
        """For other documents alone, and this pair alone."""
        return self._around(self.documents)

    def _around(self, *spreads, tail=(1 - CONFIDENCE) / 2):
        if spreads[0] is None:
            return None
        reach, most = max(spread.reach(tail) for spread in spreads), self.measure.most_apart
        return max(-most, self.difference - reach), min(most, self.difference + reach)

    @property
    def detectable(self) -> float | None:
        """The least true difference that a study would tell 80 times in 100, where all varies as it did in this one."""
        if self.both is None:
            return None
        tail = (1 - CONFIDENCE) / 2 / self.pairs
        return max(spread.detectable(tail) for spread in self._spreads)

    def with_seeds(self, count: int) -> "Comparison":
        """Return what the same comparison would be of so many seeds that vary as those here; it has a verdict.

        What documents alone add stays as it is, however many seeds there are.
        """
        if self.seeds is None or self.documents is None or self.both is None:
            raise ValueError(f"{self.b} against {self.a}: {self.lacks} cannot tell")
        seeds = Spread(self.seeds.error * math.sqrt((self.seeds.freedom + 1) / count), count - 1)
        rest = max(0.0, self.both.error**2 - self.seeds.error**2)
        squares = seeds.error**4 / seeds.freedom + rest**2 / self.documents.freedom
        error = math.hypot(seeds.error, math.sqrt(rest))
        both = Spread(error, error**4 / squares if squares else 1)
        return replace(
            self, seeds=seeds, both=both, documents=replace(self.documents, error=min(self.documents.error, error))
        )

    @property
    def is_told(self) -> bool:
        """Whether the difference is real, as far as tests go."""
        return self.p is not None and self.p < 1 - CONFIDENCE

    @property
    def verdict(self) -> str:
        """Say who is better, in words."""
        if self.p is None:
            return f"{self.b} against {self.a}: {self.lacks} cannot tell"
        if not self.is_told:
            return f"{self.b} and {self.a} are not told apart"
        return f"{self.b} is {'worse' if self.difference > 0 else 'better'} than {self.a}"

    @property
    def sentence(self) -> str:
        """Say it with its numbers; all are B's minus A's, so that less is better."""
        said = [f"{self.difference:+.4f} {self.unit}"]
        if self.p is not None and self.interval is not None:
            low, high = self.interval
            said += [f"95 % interval {low:+.4f} to {high:+.4f}", shown_p(self.p)]
        return f"{self.verdict} ({'; '.join(said)})."


def shown_p(p: float) -> str:
    """Return a p-value as text."""
    return f"p = {p:.2g}" if p >= LEAST_P else f"p < {LEAST_P}"


def compare(
    scores: dict[str, dict[int, np.ndarray]],
    weights: np.ndarray | dict[str, np.ndarray],
    compares: Callable[[str, str], bool] = lambda a, b: True,
    measure: Measure = BITS,
) -> list[Comparison]:
    """Compare pairs of variants on the same documents.

    A difference is real when it would be there with other documents and with other seeds (the same seed means the same
    order of the data). Bonferroni's method corrects for the number of pairs tested: its intervals hold together, and
    say what its verdicts say. A pair of the same runs under other names, as at several budgets that a mechanism cannot
    meet, is one test.

    Args:
        scores: what is summed of a measure, `[documents]`, by variant and seed.
        weights: what its sum is divided by, `[documents]`; the same for all, or by the name of the variant.
        compares: whether a pair is of interest.
        measure: what differences are of.
    """
    found = [
        compared(a, b, scores[a], scores[b], weights[a] if isinstance(weights, dict) else weights, measure)
        for a, b in itertools.combinations(scores, 2)
        if compares(a, b)
    ]
    of_model = {
        name: tuple((seed, amounts.tobytes()) for seed, amounts in runs.items()) for name, runs in scores.items()
    }
    tested = {frozenset((of_model[one.a], of_model[one.b])) for one in found if one.both is not None}
    return [replace(comparison, pairs=max(1, len(tested))) for comparison in found]


def compared(
    a: str,
    b: str,
    first: dict[int, np.ndarray],
    second: dict[int, np.ndarray],
    weights: np.ndarray,
    measure: Measure = BITS,
) -> Comparison:
    """Compare two variants on the seeds that both have, or on all where they share none."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        difference = np.mean(list(second.values()), axis=0) - np.mean(list(first.values()), axis=0)
        mean = float(ratio(difference, weights))
        return Comparison(a, b, mean, None, None, None, "runs without a seed in common", measure)
    difference = np.array([second[seed] - first[seed] for seed in seeds])  # [seeds, documents]
    mean = float(ratio(difference, weights).mean())
    effects = contributions(difference, weights)
    num_seeds, num_documents = effects.shape
    lacking = [
        counted(number, kind)
        for number, least, kind in ((num_seeds, LEAST_SEEDS, "seed"), (num_documents, LEAST_DOCUMENTS, "document"))
        if number < least
    ]
    return Comparison(
        a,
        b,
        mean,
        seeds=spread_of(effects.mean(1)) if num_seeds > 1 else None,
        documents=spread_of(effects.mean(0)) if num_documents >= LEAST_DOCUMENTS else None,
        both=None if lacking else spread_of_both(effects),
        lacks=" and ".join(lacking),
        measure=measure,
    )


def counted(number: int, kind: str) -> str:
    """Return a small number in words, with what it counts."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return f"{words[number]} {kind}{'s' * (number != 1)}"


def contributions(difference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what each document of each seed adds to a difference of ratios, about its mean.

    Their mean over the documents of a seed is that seed's difference less the mean of all: a ratio of sums, to first
    order in the documents (Cochran 1977, Sampling Techniques, §2.11).

    Args:
        difference: of what is summed, `[seeds, documents]`.
        weights: what the sum is divided by, `[documents]`.
    """
    rate = difference.sum() / (len(difference) * weights.sum())
    return (difference - rate * weights) * len(weights) / weights.sum()


def spread_of(effects: np.ndarray) -> Spread:
    """Return the spread of a mean when only units of one kind are drawn anew, one number each."""
    return Spread(float(effects.std(ddof=1)) / math.sqrt(len(effects)), len(effects) - 1)


def spread_of_both(effects: np.ndarray) -> Spread:
    """Return the spread of the mean of `[seeds, documents]` when both are drawn anew.

    Seeds, documents and what is of each pair of them alone vary: a two-way layout without repetition, all random. Each
    source's variance comes from the mean squares, and is 0 where a mean square is not above that of the pairs
    (Searle, Casella & McCulloch 1992, Variance Components, §4.3). The variances of the mean are added, with
    Satterthwaite's (1946) degrees of freedom over the mean squares that are left.
    """
    num_seeds, num_documents = effects.shape
    mean, of_seeds, of_documents = effects.mean(), effects.mean(1), effects.mean(0)
    pairs = effects - of_seeds[:, None] - of_documents + mean
    freedom = (num_seeds - 1) * (num_documents - 1)
    by_pairs = float((pairs**2).sum()) / freedom
    variance, squares = by_pairs, by_pairs**2 / freedom
    for square, freedom in (
        (num_documents * float(of_seeds.var(ddof=1)), num_seeds - 1),
        (num_seeds * float(of_documents.var(ddof=1)), num_documents - 1),
    ):
        if square > by_pairs:
            variance, squares = variance + square - by_pairs, squares + square**2 / freedom
    return Spread(math.sqrt(variance / effects.size), variance**2 / squares if squares else 1)
