"""Refusals of values that cannot work, each in one sentence that names the field and its value."""

import math
import sys
from types import NoneType
from typing import TYPE_CHECKING, get_args

from ...errors import UserError, shortened

if TYPE_CHECKING:
    from .base import Attention

COMMON: dict[str, tuple[str | bool | None, ...]] = {
    "output_gate": (None, "element", "head"), "qk_norm": (False, True, "whole"), "attention_bias": (False, True),
}  # fmt: skip
LARGEST = 10**9
MOST_LAYERS = 1000  # no model has as many; what asks for more would be built for hours
KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a text"}


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition`."""
    if not condition:
        raise UserError(message)


def require_whole(name: str, value: object, most: int = LARGEST) -> None:
    """Raise `UserError` unless `value` is a whole number from 1 to what no model exceeds."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name}={shortened(value)} must be a positive integer.")
    require(value <= most, f"{name}={shortened(value)} is more than any model has; give at most {most:,}.")


def require_number(name: str, value: object, above: float = 0) -> None:
    """Raise `UserError` unless `value` is a finite number greater than `above`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and above < value <= sys.float_info.max
    require(number, f"{name}={value!r} must be a number above {above}.")


def check_options(options: object, types: dict[str, type]) -> None:
    """Raise `UserError` unless `options` is a dictionary of what each may be; None derives from the size.

    Args:
        options: to be checked; those of other names are another function's affair.
        types: what the value of a name may be, such as `int | None`.
    """
    if not isinstance(options, dict):
        raise UserError(f"attention_options={options!r} must be a dictionary.")
    for name, value in options.items():
        require(isinstance(name, str), f"attention_options has {name!r}, which is no name of an option.")
        if name in types:
            check_option(name, value, types[name])


def check_option(name: str, value: object, declared: type) -> None:
    """Raise `UserError` unless `value` is of the type that is declared; None is always one, a whole number a float."""
    kinds = [kind for kind in get_args(declared) or (declared,) if kind is not NoneType]
    if value is None or type(value) in kinds:
        fits = not isinstance(value, float) or math.isfinite(value)
    else:
        fits = float in kinds and type(value) is int
    said = " or ".join(KINDS[kind] for kind in kinds if kind in KINDS)
    require(fits, f"{name}={shortened(value)} must be {said}.")
    if isinstance(value, int):
        require(
            abs(value) <= LARGEST, f"{name}={shortened(value)} is more than any model has; give {LARGEST:,} or less."
        )


def check_common(mechanism: "type[Attention]", given: dict[str, object]) -> None:
    """Raise `UserError` where an option that is common to mechanisms cannot be, or is not followed by this one.

    Args:
        mechanism: the class; its `takes` says what it follows.
        given: values by the names of `COMMON`.
    """
    for name, value in given.items():
        require(value in COMMON[name], f"{name}={value!r} is unknown; choose one of {COMMON[name]}.")
        require(
            not value or name in mechanism.takes,
            f"{name}={value!r} is not followed by {mechanism.__name__}; leave it out.",
        )


def head_width(hidden_size: int, num_attention_heads: int) -> int:
    """Return hidden_size / num_attention_heads, refusing heads that do not divide the width."""
    require(
        num_attention_heads >= 1 and hidden_size % num_attention_heads == 0,
        f"num_attention_heads={num_attention_heads} does not divide hidden_size={hidden_size}; "
        "choose a divisor of the width.",
    )
    return hidden_size // num_attention_heads


def require_groups(groups: int, num_attention_heads: int) -> None:
    """Raise `UserError` unless every group of key-value heads serves as many heads."""
    require(
        groups >= 1 and num_attention_heads % groups == 0,
        f"num_key_value_heads={groups} does not divide num_attention_heads={num_attention_heads}; "
        "choose a divisor of the heads.",
    )


def require_turnable(head_dim: int, rotary: bool) -> None:
    """Raise `UserError` unless heads have numbers, and RoPE, where it turns them whole, finds pairs of them."""
    require(
        head_dim >= 1 and not (rotary and head_dim % 2),
        f"head_dim={head_dim} is the rotary dimension and must be positive and even; "
        "change hidden_size or num_attention_heads.",
    )
