"""The one error for what the user got wrong: a sentence that names field, value and fix."""


class UserError(ValueError):
    """Input that cannot work. The message is shown as it is, without a traceback, and the exit code is 2."""
