"""Hybrids: decoders whose layers have different mechanisms, one a layer.

They are said by the names of their layers' mechanisms: as a list, or as a pattern that repeats over the layers, such
as `mla+mla+mha`. The shortest pattern that says it is what a hybrid is called everywhere, in configurations, run
folders and reports. Where all layers have one mechanism, its name is the pattern, and the decoder is no hybrid.

Options of a hybrid are stated by mechanism, `{"mla": {"kv_lora_rank": 32}}`; those of one mechanism as they are.
"""

from pathlib import Path

from .base import Attention, Option
from .checks import require
from .plugins import FROM_A_FILE

SEPARATOR = "+"


def asked_for(attention: str | list[str]) -> list:
    """Return the mechanisms that a list or a pattern asks for, as it names them; of any other name, that alone."""
    if isinstance(attention, list) and attention:
        return attention
    if not isinstance(attention, str):
        return [attention]  # which others refuse
    in_file = FROM_A_FILE.fullmatch(attention)
    return [attention] if in_file and Path(in_file[1]).is_file() else attention.split(SEPARATOR)  # a path may have a +


def pattern_of(names: list[str]) -> str:
    """Return the shortest pattern that repeats to these names."""
    num_names = len(names)
    lengths = (n for n in range(1, num_names + 1) if num_names % n == 0)
    length = next(n for n in lengths if names[:n] * (num_names // n) == names)
    return SEPARATOR.join(names[:length])


def names_in(pattern: str) -> list[str]:
    """Return the names of the mechanisms in a pattern, in order, those that come again too."""
    return pattern.split(SEPARATOR)


def is_hybrid(pattern: str) -> bool:
    """Return whether a pattern has more than one mechanism."""
    return SEPARATOR in pattern


def options_for(pattern: str, by_mechanism: dict[str, dict]) -> dict:
    """Return options as a configuration states them, of those by mechanism what is in the pattern."""
    if is_hybrid(pattern):
        return {name: by_mechanism[name] for name in names_in(pattern) if name in by_mechanism}
    return by_mechanism.get(pattern, {})


def spread(options: dict[str, Option], mechanisms: dict[str, type[Attention]]) -> dict[str, dict[str, Option]]:
    """Return options by mechanism: each goes to all that know it and leave the choice; one alone is given all.

    Args:
        options: by name.
        mechanisms: those of a pattern, by name.

    Raises:
        UserError: of several mechanisms none knows one of the options.
    """
    if len(mechanisms) == 1:
        return dict.fromkeys(mechanisms, options)
    chosen = {
        name: {option: value for option, value in options.items() if option in mechanism.free_options()}
        for name, mechanism in mechanisms.items()
    }
    lost = sorted(options.keys() - {option for own in chosen.values() for option in own})
    require(not lost, f"{', '.join(lost)} is an option of none of {', '.join(mechanisms)}; leave it out.")
    return chosen
