"""What came of trying settings: which are best, whether the optimum may lie beyond them, and what trying was worth."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .statistics import LEAST_DOCUMENTS
from .tuning import Factor, Settings


@dataclass(frozen=True)
class Tuned:
    """The settings that a variant tried, in their order, with bits per byte of validation.

    Attributes:
        settings: by field.
        values: bits per byte.
        edges: the fields of the best settings that lie at the edge of what was tried.
        fit: a parabola, where learning rates alone were tried.
    """

    settings: list[Settings]
    values: list[float]
    edges: list[str]
    fit: "RateFit | None"

    @property
    def best(self) -> Settings:
        """The settings of the lowest value."""
        return self.settings[int(np.argmin(self.values))]

    @property
    def expected_best(self) -> list[tuple[float, float]]:
        """The mean and standard deviation of the lowest of n trials, for n from 1 to as many as there are.

        Of trials drawn with replacement from those that were made (Dodge et al. 2019, Show Your Work, arXiv 1909.03004,
        §3.1, eq. 8; the variance likewise).
        """
        ordered, count = np.sort(self.values), len(self.values)
        left = (count - np.arange(count + 1)) / count  # share of the trials that are not among the first i
        found = []
        for number in range(1, count + 1):
            chance = left[:-1] ** number - left[1:] ** number  # that the lowest is the i-th
            mean = float(chance @ ordered)
            found.append((mean, math.sqrt(max(0.0, float(chance @ ordered**2) - mean**2))))
        return found


def tuned(tried: list[tuple[Settings, float]], factors: dict[str, Factor], design: list[Settings]) -> Tuned:
    """Return what came of trying settings.

    Args:
        tried: settings with bits per byte of validation.
        factors: of the space that they were drawn from; empty where learning rates were listed.
        design: all that were to be tried, those too that failed, or had a part of the tokens alone.
    """
    settings, values = [one for one, _ in tried], [value for _, value in tried]
    fit = None
    if all(set(one) == {"learning_rate"} for one in settings):
        fit = fit_rates({one["learning_rate"]: value for one, value in tried})
    best = settings[int(np.argmin(values))]
    edges = [
        name
        for name, value in best.items()
        if is_outermost(value, [one[name] for one in design]) or (name in factors and factors[name].is_edge(value))
    ]
    return Tuned(settings, values, edges, fit)


def is_outermost(value: Any, tried: list) -> bool:
    """Return whether a number is the least or the most of several that were tried; names and switches are neither."""
    return type(value) in (int, float) and min(tried) < max(tried) and value in (min(tried), max(tried))


def too_few(documents: int) -> str:
    """Say that validation is too small to choose by; nothing where it is not."""
    if documents >= LEAST_DOCUMENTS:
        return ""
    return (
        f"Validation has {documents} document{'s' if documents > 1 else ''}, too few to choose by: which settings come "
        f"out best may be chance below {LEAST_DOCUMENTS}."
    )


@dataclass(frozen=True)
class RateFit:
    """A parabola through loss against the logarithm of the learning rate, and what it says of the optimum."""

    rates: tuple[float, ...]
    values: tuple[float, ...]
    best: float
    coefficients: tuple[float, ...] | None
    optimum: float | None

    def at(self, rate: float) -> float:
        """Return the fitted value at a learning rate."""
        if self.coefficients is None:
            raise ValueError(f"{len(self.rates)} learning rates make no parabola")
        return float(np.polyval(self.coefficients, math.log(rate)))


def fit_rates(values: dict[float, float]) -> RateFit:
    """Fit bits per byte against learning rate."""
    rates = sorted(values)
    best = min(rates, key=values.__getitem__)
    ordered = tuple(values[rate] for rate in rates)
    if len(rates) < 3:
        return RateFit(tuple(rates), ordered, best, None, None)
    fit = np.polyfit(np.log(rates), ordered, 2)
    optimum = math.exp(-fit[1] / (2 * fit[0])) if fit[0] > 0 else None
    if optimum is not None and not rates[0] <= optimum <= rates[-1]:
        optimum = None
    return RateFit(tuple(rates), ordered, best, tuple(map(float, fit)), optimum)
