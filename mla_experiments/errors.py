"""How the program ends early: a sentence on what the user got wrong, or on how to resume."""


class UserError(ValueError):
    """Input that cannot work. The message is shown as it is, without a traceback, and the exit code is 2."""


class Stopped(Exception):  # noqa: N818 - no error: the user asked for it
    """The user asked to stop; the message says how to go on. Nothing is lost, and the exit code is 130."""


def reason_of(error: BaseException) -> str:
    """Return what an exception of a library says, short and on one line, to be quoted in a sentence of ours."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
