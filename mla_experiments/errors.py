"""How the program ends early: a sentence on what the user got wrong, or on how to resume."""

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class UserError(ValueError):
    """Input that cannot work. The message is shown as it is, without a traceback, and the exit code is 2."""


class Missing(UserError):  # noqa: N818 - says what is missing
    """A package that is not installed, and what needs it."""

    def __init__(self, package: str, why: str):
        super().__init__(f"{package} is not installed: {why}; pip install {package}")
        self.package, self.why = package, why


class InUse(UserError):  # noqa: N818 - no error: the other one does the work
    """Another process works in a folder."""


class Stopped(Exception):  # noqa: N818 - no error: the user asked for it
    """The user asked to stop; the message says how to go on. Nothing is lost, and the exit code is 130."""


def repeated(values: Sequence[Item]) -> list[Item]:
    """Return those of some values that stand there before, in their order; they need not be hashable."""
    return [one for place, one in enumerate(values) if one in values[:place]]


def unknown(field: str, name: object, known: Iterable[str], cutoff: float = 0.5) -> UserError:
    """Return the error for a name that nobody knows, with the nearest that is known, alike by `cutoff`, or with all."""
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=cutoff)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
    return UserError(f"{field}={name} is unknown; {hint}")


def shortened(value: object) -> str:
    """Return a value as Python writes it, or the beginning of that; some numbers are longer than Python writes any."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: object) -> str:
    """Return what a terminal can take on one line: line breaks and controls in what somebody typed are escaped."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))


def reason_of(error: BaseException) -> str:
    """Return what an exception of a library says, short and on one line, to be quoted in a sentence of ours."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


def lacks_memory(error: BaseException) -> bool:
    """Return whether an exception says that there is not enough memory, in whichever way a library says so."""
    names = {kind.__name__ for kind in type(error).__mro__}  # torch, which has its own, need not be imported for that
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)
