"""The registry of attention mechanisms, ours and those from outside.

To add one of ours: write its file and name its class here. From outside: `register`, or see `plugins.py`.
"""

from pathlib import Path

from ...errors import unknown
from . import plugins
from .base import Attention
from .checks import require
from .decode_modes import set_decode_mode
from .diff import Diff
from .gla import GLA
from .gqa import GQA
from .gta import GTA
from .hybrid import asked_for, names_in, pattern_of
from .keqv import KEqV
from .mfa import MFA
from .mfa_kr import MFAKR
from .mha import MHA
from .mla import MLA
from .mlra import MLRA
from .mqa import MQA
from .tpa import TPA

ATTENTION: dict[str, type[Attention]] = {
    "mha": MHA, "gqa": GQA, "mqa": MQA, "mla": MLA, "gta": GTA, "keqv": KEqV, "gla": GLA, "mlra": MLRA, "tpa": TPA,
    "mfa": MFA, "mfa_kr": MFAKR, "diff": Diff,
}  # fmt: skip
MISSION = ("mha", "gqa", "mqa", "mla")  # compared where nobody says which


def register(mechanism: type[Attention], name: str | None = None) -> str:
    """Make a mechanism known by a name, to everything in this package; return the name.

    Args:
        mechanism: a class of `Attention`; `mla_experiments.testing.check_attention` says whether it keeps the contract.
        name: by default that of the class in small letters.

    Raises:
        UserError: it is no mechanism, or the name is taken by another.
    """
    name = getattr(mechanism, "__name__", str(mechanism)).lower() if name is None else name
    plugins.check_mechanism(mechanism, name)
    taken = ATTENTION.get(name, mechanism)
    same = (taken.__module__, taken.__qualname__) == (mechanism.__module__, mechanism.__qualname__)  # defined anew
    require(same, f"attention={name} is taken by {taken.__module__}.{taken.__qualname__}; give another name")
    ATTENTION[name] = mechanism
    return name


def find(asked: str | list[str]) -> str:
    """Return what is asked for by its names in the registry; of a hybrid the shortest pattern, see `hybrid`.

    Args:
        asked: a name, or `path/to/file.py:Class`, which is registered; or several, as a list or with + between them.

    Raises:
        UserError: nobody knows it, or what it names does not import or is no mechanism.
    """
    return pattern_of([_found(name) for name in asked_for(asked)])


def mechanisms_of(pattern: str) -> dict[str, type[Attention]]:
    """Return the mechanisms in what `find` returns, by name, each once."""
    return {name: ATTENTION[name] for name in names_in(pattern)}


def _found(asked: str) -> str:
    require(isinstance(asked, str), f"attention={asked!r} is no name of a mechanism.")
    if asked in ATTENTION:
        return asked
    if in_file := plugins.FROM_A_FILE.fullmatch(asked):
        path = Path(in_file[1])
        name = register(plugins.class_from_file(path, in_file[2]))
        plugins.hand_on(path, in_file[2])
        return name
    for named in plugins.handed_on():
        if _found(named) == asked:
            return asked
    if mechanism := plugins.announced(asked):
        return register(mechanism, asked)
    raise unknown("attention", asked, ATTENTION, cutoff=0.6)  # their names are short


__all__ = [
    "ATTENTION",
    "GLA",
    "GQA",
    "GTA",
    "MFA",
    "MFAKR",
    "MHA",
    "MISSION",
    "MLA",
    "MLRA",
    "MQA",
    "TPA",
    "Attention",
    "Diff",
    "KEqV",
    "find",
    "mechanisms_of",
    "register",
    "set_decode_mode",
]
