"""Equal tuning: every mechanism tries as many points of its own space, and what came out best is confirmed apart.

Points are quasi-random (Halton 1960, scrambled), which covers a space of few trials better than a grid or chance
(Bousquet et al. 2017, Critical Hyper-Parameters, arXiv 1706.03200), and the same for all mechanisms in the factors that
they share. All are tried with a seed of their own; the best by validation is trained again with fresh seeds, and the
comparison is over those, on the test split, which took no part either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError, repeated
from ..modeling.attention import mechanisms_of
from ..modeling.attention.checks import COMMON

SEED = 1000  # of all trials
EDGE = 0.1  # share of a range, on its scale, that counts as its edge
OPTION = "attention."
Settings = dict[str, Any]


@dataclass(frozen=True)
class Factor:
    """What is tuned: the values to choose among, or the ends of a range on a logarithmic scale.

    Attributes:
        values: the choices, or the two ends.
        is_range: whether they are ends.
    """

    values: tuple
    is_range: bool

    def at(self, place: float) -> Any:
        """Return the value at a place from 0 to 1."""
        if not self.is_range:
            return self.values[min(int(place * len(self.values)), len(self.values) - 1)]
        low, high = map(math.log, self.values)
        return float(f"{math.exp(low + place * (high - low)):.3g}")

    def is_edge(self, value: float) -> bool:
        """Return whether a value lies where the optimum may be beyond the range; choices have no edge."""
        if not self.is_range:
            return False
        low, high = map(math.log, self.values)
        place = (math.log(value) - low) / (high - low)
        return min(place, 1 - place) < EDGE


@dataclass(frozen=True)
class Space:
    """What is tuned, by name, and how many points are tried; `attention.OPTION` is an option of mechanisms.

    Attributes:
        trials: points that each mechanism tries.
        factors: by name.
        halving: the shares of a training's tokens that a mechanism's trials train on before the better half has more.
    """

    trials: int
    factors: Mapping[str, Factor]
    halving: tuple[float, ...] = ()


def options_of(attention: str) -> set[str]:
    """Return the options that a study can choose of a mechanism, or of any in a hybrid."""
    return set().union(*(mechanism.free_options() for mechanism in mechanisms_of(attention).values()))


def has_factor(attention: str, name: str) -> bool:
    """Return whether a mechanism has what a factor of that name changes; of a hybrid, whether any has an option."""
    if name.startswith(OPTION):
        return name.removeprefix(OPTION) in options_of(attention)
    return name not in COMMON or all(name in mechanism.takes for mechanism in mechanisms_of(attention).values())


def factor_of(name: str, values: Any) -> Factor:
    """Return what a field of `tuning` states.

    Two numbers with a decimal point are a range; any other list is of choices.

    Raises:
        UserError: it cannot be.
    """
    said = f"tuning.{name}={values}"
    values = list(map(as_number, values)) if isinstance(values, list) else values
    if not isinstance(values, list) or not values:
        raise UserError(f"{said} must be a list of choices, or of the two ends of a range, such as [1.0e-3, 1.0e-2]")
    if any(isinstance(value, list | dict) for value in values):
        raise UserError(f"{said} must be a list of plain values")
    if twice := repeated(values):
        raise UserError(f"{said} names {twice[0]} twice; once is enough")
    is_range = len(values) == 2 and all(type(value) is float for value in values)
    if is_range and not 0 < values[0] < values[1] < math.inf:
        raise UserError(f"{said} must be a range from a lower to a higher positive number")
    return Factor(tuple(values), is_range)


def as_number(value: Any) -> Any:
    """Return the number that a text is, and anything else as it is: to YAML 1e-3, without a point, is a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_factor(name: str, factor: Factor, attention: list[str], trials: int) -> None:
    """Refuse choices that are more than the trials, or that no mechanism can have.

    Raises:
        UserError: see there.
    """
    if not factor.is_range and len(factor.values) > trials:
        raise UserError(
            f"tuning: trials={trials} are fewer than the {len(factor.values)} values of {name}; raise trials"
        )
    if not any(has_factor(one, name) for one in attention):
        raise UserError(f"tuning.{name} is of none of {', '.join(attention)}; leave it out")


def designs_of(
    space: Space | None, rates: dict[str, list[float]], attention: list[str]
) -> dict[str, tuple[Settings, ...]]:
    """Return what every mechanism tries: the points of a space, or learning rates, ascending."""
    if space is None:
        return {name: tuple({"learning_rate": value} for value in sorted(rates[name])) for name in attention}
    return {
        name: tuple({"learning_rate": rates[name][0]} | point for point in design(space, name)) for name in attention
    }


def design(space: Space, attention: str) -> tuple[Settings, ...]:
    """Return the points that a mechanism tries, in their order; those that come out alike are tried once."""
    from scipy.stats import qmc  # where nothing is tuned a study can be planned without

    names = list(space.factors)
    points = qmc.Halton(d=len(names), scramble=True, rng=np.random.default_rng(0)).random(space.trials)
    tried = [
        {name: space.factors[name].at(place) for name, place in zip(names, point, strict=True)
         if has_factor(attention, name)}
        for point in points
    ]  # fmt: skip
    return tuple(one for place, one in enumerate(tried) if one not in tried[:place])
