"""How sure a study is: intervals over seeds, paired comparisons over seeds and documents.

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
LEAST_P = 0.0001  # that is shown
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
    """Whether B is worse than A (difference > 0, in bits per byte), with its interval and p-value.

    The interval is that of the difference when other seeds and other documents of the kind are drawn; `over_seeds` and
    `over_documents` are those when only one of them is, None where there is a single one. `p` is corrected for the
    number of comparisons, the intervals are not; p and the interval are None without both sources.
    """

    a: str
    b: str
    difference: float
    interval: Interval | None
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
        if self.p is not None:
            low, high = self.interval
            said += [f"95 % interval {low:+.4f} to {high:+.4f}", shown_p(self.p)]
        return f"{self.verdict} ({'; '.join(said)})."


def shown_p(p: float) -> str:
    """Return a p-value as text."""
    return f"p = {p:.2g}" if p >= LEAST_P else f"p < {LEAST_P}"


def compare(
    scores: dict[str, dict[int, np.ndarray]],
    num_bytes: np.ndarray,
    compares: Callable[[str, str], bool] = lambda a, b: True,
) -> list[Comparison]:
    """Compare pairs of variants on the same documents.

    A difference is real when it would be there with other documents and with other seeds (the same seed means the same
    order of the data). Both vary its mean: their variances, documents' by bootstrap and seeds' of paired differences,
    are added, with Satterthwaite's degrees of freedom. The larger p-value of two tests would not do: where both sources
    matter alike, more than 10 % of its verdicts are false. Holm's method corrects for the number of pairs tested.

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
        return Comparison(a, b, float(bits_per_byte(difference, num_bytes)), None, None, None, None)
    difference = np.array([second[seed] - first[seed] for seed in seeds])  # [seeds, documents]
    by_seed = bits_per_byte(difference, num_bytes)
    mean, of_seeds, of_documents = float(by_seed.mean()), len(seeds) - 1, len(num_bytes) - 1  # degrees of freedom
    over_documents, documents_error = bootstrap(difference.mean(0), num_bytes) if of_documents else (None, None)
    if not of_seeds:
        return Comparison(a, b, mean, None, None, over_documents, None)
    seeds_error = float(stats.sem(by_seed))
    over_seeds, _ = student(mean, seeds_error, of_seeds)
    if not of_documents:
        return Comparison(a, b, mean, None, over_seeds, None, None)
    error = math.hypot(seeds_error, documents_error)
    freedom = error**4 / (seeds_error**4 / of_seeds + documents_error**4 / of_documents) if error else of_seeds
    interval, p = student(mean, error, freedom)
    return Comparison(a, b, mean, interval, over_seeds, over_documents, p)


def student(mean: float, error: float, freedom: float) -> tuple[Interval, float]:
    """Return the interval around a mean with a standard error, and the two-sided p-value of its being 0."""
    if error == 0:  # the same weights, or exactly the same distance for every seed and document
        return (mean, mean), float(mean == 0)
    low, high = stats.t.interval(CONFIDENCE, freedom, mean, error)
    return (float(low), float(high)), float(2 * stats.t.sf(abs(mean) / error, freedom))


def bootstrap(difference: np.ndarray, num_bytes: np.ndarray) -> tuple[Interval, float]:
    """Return the interval over documents of a difference in bits per byte, and its standard error."""

    def statistic(nats, size, axis=-1):
        return nats.sum(axis) / size.sum(axis) / math.log(2)

    result = stats.bootstrap(
        (difference, num_bytes), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // len(num_bytes)), confidence_level=CONFIDENCE, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return (float(result.confidence_interval.low), float(result.confidence_interval.high)), float(result.standard_error)
