"""Refusals of values that cannot work, each in one sentence that names the field and its value."""

import sys

from ...errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition`."""
    if not condition:
        raise UserError(message)


def require_whole(name: str, value: object) -> None:
    """Raise `UserError` unless `value` is a whole number of at least 1."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= 1, f"{name}={value!r} must be a positive integer.")


def require_number(name: str, value: object, above: float = 0) -> None:
    """Raise `UserError` unless `value` is a finite number greater than `above`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    require(number and above < value <= sys.float_info.max, f"{name}={value!r} must be a number above {above}.")


def check_options(options: object) -> None:
    """Raise `UserError` unless `options` is a dictionary of whole numbers, or None for what derives from the size."""
    require(isinstance(options, dict), f"attention_options={options!r} must be a dictionary.")
    for name, value in options.items():
        require(isinstance(name, str), f"attention_options has {name!r}, which is no name of an option.")
        if value is not None:
            require(isinstance(value, int) and not isinstance(value, bool), f"{name}={value!r} must be an integer.")


def head_width(hidden_size: int, num_attention_heads: int) -> int:
    """Return hidden_size / num_attention_heads, refusing heads that do not divide the width."""
    require(
        num_attention_heads >= 1 and hidden_size % num_attention_heads == 0,
        f"num_attention_heads={num_attention_heads} does not divide hidden_size={hidden_size}; "
        "choose a divisor of the width.",
    )
    return hidden_size // num_attention_heads
