"""What a difference does as compute grows: a power law through the sizes and budgets of each mechanism.

Bits per byte = E + A · (C / C₀)^-α for training FLOPs C (Hoffmann et al. 2022, arXiv 2203.15556, §3.3, on one axis; C₀
is the smallest, so that A is what is left to gain there). Three points determine a curve, so that a good fit of three
says nothing; seeds are drawn anew to say how little is known. Nothing is said beyond twice the largest budget.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

from ..study.matching import SIZES
from ..study.statistics import CONFIDENCE, LEAST_SEEDS, Interval
from .findings import Findings, Row, bits_of

ALONG = (*SIZES, "num_attention_heads", "train_tokens")  # what makes points of one curve
DRAWS = 200
BEYOND = 2.0  # times the largest compute
Parameters = tuple[float, float, float]  # E, A, α


@dataclass(frozen=True)
class Curve:
    """A mechanism's law.

    Attributes:
        compute: training FLOPs, ascending.
        bits: means over seeds, bits per byte.
        law: E, A and α.
        seeds: which all points have.
        drawn: laws of other draws of the seeds.
    """

    compute: np.ndarray
    bits: np.ndarray
    law: Parameters
    seeds: list[int]
    drawn: list[Parameters]

    def at(self, compute: np.ndarray | float, law: Parameters | None = None) -> np.ndarray:
        """Return the bits per byte at some compute."""
        limit, gain, power = law or self.law
        return limit + gain * (np.asarray(compute) / self.compute[0]) ** -power

    @property
    def cost(self) -> str:
        """Say how well the law fits, where it could have failed to."""
        if len(self.compute) == len(self.law):
            return f"through {len(self.law)} points, which says nothing of how well it fits"
        rest = self.bits - self.at(self.compute)
        spread = ((self.bits - self.bits.mean()) ** 2).sum()
        explained = 1 - (rest**2).sum() / spread if spread else 1.0
        return f"R² {explained:.4f}, largest residual {np.abs(rest).max():.4f}"


def fit(compute: np.ndarray, bits: np.ndarray, start: Parameters | None = None) -> Parameters:
    """Return the law nearest to some points, by least squares; E is at least 0, α from 0 to 2.

    Args:
        compute: ascending.
        bits: bits per byte there.
        start: a law nearby, if one is known.
    """
    ratio = compute / compute[0]

    def rest(law):
        return law[0] + law[1] * ratio ** -law[2] - bits

    starts = [(bits.min() * share, bits[0] - bits.min() * share, power) for share in (0.5, 0.9) for power in (0.1, 0.5)]
    starts = [start] if start else starts
    found = [least_squares(rest, start, bounds=([0, 0, 0], [np.inf, np.inf, 2])) for start in starts]
    e, a, alpha = map(float, min(found, key=lambda one: one.cost).x)
    return e, a, alpha


@lru_cache(maxsize=1)  # for the words and for the figure of a report
def curves(found: Findings) -> dict[str, Curve]:
    """Return a curve for each mechanism, or recipe of one, that was trained with three or more amounts of compute.

    None where these have no seed in common yet.
    """
    parts = {variant["name"]: variant["variant"] for variant in found.content["variants"]}
    settings = found.content["stated"]["settings"]
    families: dict[str, list[tuple[float, Row]]] = {}
    for row in found.rows:
        changed = parts[row.name]["changed"]
        others = " ".join(f"{name}={value}" for name, value in changed.items() if name not in ALONG)
        tokens = (settings | changed)["train_tokens"]
        families.setdefault(f"{row.mechanism} {others}".strip(), []).append((row.training_flops * tokens, row))
    return {
        name: curve_of(sorted(points, key=lambda point: point[0]))
        for name, points in families.items()
        if len({compute for compute, _ in points}) >= 3 and shared_seeds(points)
    }


def shared_seeds(points: list[tuple[float, Row]]) -> list[int]:
    """Return the seeds that all rows have."""
    return sorted(set.intersection(*(set(row.runs) for _, row in points)))


def curve_of(points: list[tuple[float, Row]]) -> Curve:
    """Return the law of rows, and those of seeds drawn anew, the same for all rows."""
    compute = np.array([flops for flops, _ in points])
    seeds = shared_seeds(points)
    bits = np.array([[bits_of(row.runs[seed], "test") for seed in seeds] for _, row in points])  # [points, seeds]
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(seeds), (DRAWS if len(seeds) >= LEAST_SEEDS else 0, len(seeds)))
    law = fit(compute, bits.mean(1))
    return Curve(compute, bits.mean(1), law, seeds, [fit(compute, bits[:, drawn].mean(1), law) for drawn in draws])


def difference_at(a: Curve, b: Curve, compute: float) -> tuple[float, Interval | None]:
    """Return B's bits per byte less A's by their laws, and its interval over seeds; None of few, or of other seeds.

    Draws of n seeds vary less than samples of n do, by √((n - 1) / n), and n of them ask for Student's t: the quantiles
    of the draws alone would hold the truth of three seeds three times in four.
    """
    difference = float(b.at(compute) - a.at(compute))
    if not a.drawn or a.seeds != b.seeds:
        return difference, None
    drawn = [float(b.at(compute, of_b) - a.at(compute, of_a)) for of_a, of_b in zip(a.drawn, b.drawn, strict=True)]
    freedom = len(a.seeds) - 1
    error = float(np.std(drawn)) * math.sqrt(len(a.seeds) / freedom)
    reach = -float(stdtrit(freedom, (1 - CONFIDENCE) / 2)) * error
    return difference, (difference - reach, difference + reach)


def sentences(found: dict[str, Curve]) -> list[str]:
    """Say the laws, how well they fit, and what each difference to the first one does as compute grows."""
    said = []
    for name, curve in found.items():
        limit, gain, power = curve.law
        said.append(f"{name}: {limit:.3f} + {gain:.3f} · (C / {curve.compute[0]:.2g})^-{power:.3f} ({curve.cost}).")
    first, *others = found
    for name in others:
        a, b = found[first], found[name]
        low = max(a.compute[0], b.compute[0])
        high = BEYOND * min(a.compute[-1], b.compute[-1])
        ends = []
        for compute in (low, high):
            difference, interval = difference_at(a, b, compute)
            shown = "" if interval is None else f" ({interval[0]:+.4f} to {interval[1]:+.4f})"
            ends.append(f"{difference:+.4f}{shown} at {compute:.2g} FLOPs")
        sure = "95 % over seeds" if interval else f"without an interval, for want of {LEAST_SEEDS} seeds that both have"
        said.append(f"{name} less {first}: {' and '.join(ends)}, twice the largest budget; {sure}.")
    return said
