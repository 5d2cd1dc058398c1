"""Which learning rate is best: a parabola through what a sweep gave."""

import math
from dataclasses import dataclass

import numpy as np


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
