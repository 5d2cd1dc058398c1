"""How the program ends early: a sentence on what the user got wrong, or on how to resume."""


class UserError(ValueError):
    """Input that cannot work. The message is shown as it is, without a traceback, and the exit code is 2."""


class InUse(UserError):  # noqa: N818 - no error: the other one does the work
    """Another process works in a folder."""


class Stopped(Exception):  # noqa: N818 - no error: the user asked for it
    """The user asked to stop; the message says how to go on. Nothing is lost, and the exit code is 130."""
