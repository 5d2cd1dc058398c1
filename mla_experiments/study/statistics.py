"""How sure a study is: intervals over seeds, paired comparisons over documents, the best learning rate.

Tests and intervals are scipy's, the correction for many comparisons statsmodels'. What counts is bits per byte of the
test split, which compares across tokenizers.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
RESAMPLES = 9999
AT_ONCE = 5_000_000  # documents drawn at a time, over all resamples: 40 MB
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


def bits_per_byte(nats: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """Return nats `[..., documents]` over bytes `[documents]`, in bits."""
    return nats.sum(-1) / num_bytes.sum() / math.log(2)


def perplexity_per_word(nats: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return exp(nats / words) of nats `[..., documents]` and words `[documents]`."""
    return np.exp(nats.sum(-1) / words.sum())


@dataclass(frozen=True)
class Comparison:
    """Whether B is worse than A (difference > 0, in bits per byte), with intervals and p-value.

    `over_seeds` is the interval of the difference when other seeds are drawn, `over_documents` when other documents of
    the kind are; None where there is a single one. `p` is the larger of the two tests', corrected; None without both.
    """

    a: str
    b: str
    difference: float
    over_seeds: Interval | None
    over_documents: Interval | None
    p: float | None

    @property
    def is_told(self) -> bool:
        """Whether the difference is real, as far as tests go."""
        return self.p is not None and self.p < 1 - CONFIDENCE

    @property
    def verdict(self) -> str:
        """Say who is better, in words."""
        if self.p is None:
            only = "seed" if self.over_seeds is None else "document"
            return f"{self.b} against {self.a}: one {only}, no verdict"
        if not self.is_told:
            return f"{self.b} and {self.a} are not told apart"
        return f"{self.b} is {'worse' if self.difference > 0 else 'better'} than {self.a}"

    @property
    def sentence(self) -> str:
        """Say it with its numbers; all are B's minus A's, so that less is better."""
        said = [f"{self.difference:+.4f} bits per byte"]
        intervals = {"seeds": self.over_seeds, "documents": self.over_documents}
        said += [f"over {of} {low:+.4f} to {high:+.4f}" for of, (low, high) in present(intervals)]
        said += [] if self.p is None else [f"p = {self.p:.2g}"]
        return f"{self.verdict} ({'; '.join(said)})."


def present(values: dict) -> list[tuple]:
    """Return the items of a dictionary that are there."""
    return [(name, value) for name, value in values.items() if value is not None]


def compare(
    scores: dict[str, dict[int, np.ndarray]],
    num_bytes: np.ndarray,
    compares: Callable[[str, str], bool] = lambda a, b: True,
) -> list[Comparison]:
    """Compare pairs of variants on the same documents.

    A difference is real when it would be there with other documents and with other seeds: both are tested, documents
    by bootstrap and seeds by Student's paired t (the same seed means the same order of the data), and the larger
    p-value counts. Holm's method corrects for the number of pairs tested.

    Args:
        scores: nats `[documents]` by variant and seed.
        num_bytes: `[documents]`.
        compares: whether a pair is of interest.
    """
    found = [
        compared(a, b, scores[a], scores[b], num_bytes) for a, b in itertools.combinations(scores, 2) if compares(a, b)
    ]
    tested = [place for place, comparison in enumerate(found) if comparison.p is not None]
    if tested:
        corrected = multipletests([found[place].p for place in tested], method="holm")[1]
        for place, p in zip(tested, corrected, strict=True):
            found[place] = replace(found[place], p=float(p))
    return found


def compared(
    a: str, b: str, first: dict[int, np.ndarray], second: dict[int, np.ndarray], num_bytes: np.ndarray
) -> Comparison:
    """Compare two variants on the seeds that both have, or on all where they share none; p is not corrected yet."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        difference = np.mean(list(second.values()), axis=0) - np.mean(list(first.values()), axis=0)
        return Comparison(a, b, float(bits_per_byte(difference, num_bytes)), None, None, None)
    difference = np.array([second[seed] - first[seed] for seed in seeds])  # [seeds, documents]
    by_seed = bits_per_byte(difference, num_bytes)
    over_seeds, p_seeds = student(by_seed)
    documents, p_documents = bootstrap(difference.mean(0), num_bytes)
    both = None if p_seeds is None or p_documents is None else max(p_seeds, p_documents)
    return Comparison(a, b, float(by_seed.mean()), over_seeds, documents, both)


def student(differences: np.ndarray) -> tuple[Interval | None, float | None]:
    """Return the interval over seeds of a mean difference and its two-sided p-value; None of a single seed."""
    if len(differences) < 2:
        return None, None
    if not differences.any():  # the same weights: there is no spread to divide by
        return (0.0, 0.0), 1.0
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return (float(interval.low), float(interval.high)), float(test.pvalue)


def bootstrap(difference: np.ndarray, num_bytes: np.ndarray) -> tuple[Interval | None, float | None]:
    """Return the interval over documents of a difference in bits per byte and its two-sided p-value; None of one."""
    if len(num_bytes) < 2:
        return None, None

    def statistic(nats, size, axis=-1):
        return nats.sum(axis) / size.sum(axis) / math.log(2)

    result = stats.bootstrap(
        (difference, num_bytes), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // len(num_bytes)), confidence_level=CONFIDENCE, method="percentile",
        rng=np.random.default_rng(0),
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

    def at(self, rate: float) -> float:
        """Return the fitted value at a learning rate."""
        return float(np.polyval(self.coefficients, math.log(rate)))


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
