"""How sure a study is: intervals over seeds, paired comparisons over documents, the best learning rate.

Tests and intervals are scipy's, the correction for many comparisons statsmodels'. What counts is bits per byte of the
test split, which compares across tokenizers.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
RESAMPLES = 9999


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


def bits_per_byte(nats: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """Return nats `[..., documents]` over bytes `[documents]`, in bits."""
    return nats.sum(-1) / num_bytes.sum() / math.log(2)


def perplexity_per_word(nats: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return exp(nats / words) of nats `[..., documents]` and words `[documents]`."""
    return np.exp(nats.sum(-1) / words.sum())


@dataclass(frozen=True)
class Comparison:
    """Whether B is worse than A (difference > 0, in bits per byte), with intervals and p-values.

    `over_documents` is the interval of the difference when other documents of the kind are drawn, `over_seeds` when
    other seeds are; None with a single seed. `p` is the larger of the two tests', corrected.
    """

    a: str
    b: str
    difference: float
    over_documents: tuple[float, float]
    over_seeds: tuple[float, float] | None
    p: float

    @property
    def sentence(self) -> str:
        """Say it in words."""
        size = f"{abs(self.difference):.4f} bits per byte"
        if self.over_seeds is None:
            return f"{self.b} against {self.a}: {self.difference:+.4f} bits per byte, one seed: no verdict."
        low, high = sorted(end if self.difference > 0 else -end for end in self.over_seeds)
        sure = f"95 % interval over seeds {low:.4f} to {high:.4f}, p = {self.p:.2g}"
        if self.p >= 1 - CONFIDENCE:
            return f"{self.b} and {self.a} are not told apart at this budget (difference {size}; {sure})."
        return f"{self.b} is {'worse' if self.difference > 0 else 'better'} than {self.a} by {size} ({sure})."


def compare(scores: dict[str, np.ndarray], num_bytes: np.ndarray, seed: int = 0) -> list[Comparison]:
    """Compare every pair of variants on the same documents.

    A difference is real when it would be there with other documents and with other seeds: both are tested, documents
    by bootstrap and seeds by Student's paired t (the same seed means the same order of the data), and the larger
    p-value counts. Holm's method corrects for the number of pairs.

    Args:
        scores: nats `[seeds, documents]` by variant.
        num_bytes: `[documents]`.
        seed: of the bootstrap.
    """
    found = []
    for (a, first), (b, second) in itertools.combinations(scores.items(), 2):
        seeds = min(len(first), len(second))
        difference = second[:seeds] - first[:seeds]  # [seeds, documents]
        documents, p_documents = over_documents(difference.mean(0), num_bytes, seed)
        by_seed = bits_per_byte(difference, num_bytes)
        over_seeds, p_seeds = None, 1.0
        if seeds > 1:
            test = stats.ttest_1samp(by_seed, 0.0)
            interval = test.confidence_interval(CONFIDENCE)
            over_seeds, p_seeds = (float(interval.low), float(interval.high)), float(test.pvalue)
        mean = float(by_seed.mean())
        found.append(Comparison(a, b, mean, documents, over_seeds, max(p_documents, p_seeds)))
    if not found:
        return []
    corrected = multipletests([comparison.p for comparison in found], method="holm")[1]
    return [
        Comparison(c.a, c.b, c.difference, c.over_documents, c.over_seeds, float(p))
        for c, p in zip(found, corrected, strict=True)
    ]


def over_documents(difference: np.ndarray, num_bytes: np.ndarray, seed: int) -> tuple[tuple[float, float], float]:
    """Return the bootstrap interval over documents of a difference in bits per byte, and its two-sided p-value."""

    def statistic(nats, size, axis=-1):
        return nats.sum(axis) / size.sum(axis) / math.log(2)

    result = stats.bootstrap(
        (difference, num_bytes), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    draws = result.bootstrap_distribution
    beyond = min((draws <= 0).sum(), (draws >= 0).sum()) + 1
    p = min(1.0, 2 * float(beyond) / (len(draws) + 1))
    return (float(result.confidence_interval.low), float(result.confidence_interval.high)), p


@dataclass(frozen=True)
class RateFit:
    """A parabola through loss against the logarithm of the learning rate, and what it says of the optimum."""

    rates: tuple[float, ...]
    values: tuple[float, ...]
    best: float
    at_edge: bool
    coefficients: tuple[float, ...] | None
    optimum: float | None


def fit_rates(values: dict[float, float]) -> RateFit:
    """Fit bits per byte against learning rate; the best measured rate at an edge of the sweep is flagged."""
    rates = sorted(values)
    best = min(rates, key=values.__getitem__)
    at_edge = len(rates) > 1 and best in (rates[0], rates[-1])
    ordered = tuple(values[rate] for rate in rates)
    if len(rates) < 3:
        return RateFit(tuple(rates), ordered, best, at_edge, None, None)
    fit = np.polyfit(np.log(rates), ordered, 2)
    optimum = math.exp(-fit[1] / (2 * fit[0])) if fit[0] > 0 else None
    if optimum is not None and not rates[0] <= optimum <= rates[-1]:
        optimum = None
    return RateFit(tuple(rates), ordered, best, at_edge, tuple(map(float, fit)), optimum)
