"""How a command is asked to stop: by Ctrl-C or SIGTERM, and by SIGTERM alone where Ctrl-C is not meant for it.

A shell has what it starts in the background ignore Ctrl-C, which is for what runs in the foreground (`&` in a script or
a Makefile). Python leaves it ignored, and so does this package: such a job is told how else it is stopped.
"""

import contextlib
import os
import signal
import sys


def ignores_ctrl_c() -> bool:
    """Return whether whoever started this process has it ignore Ctrl-C."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def say(sentence: str) -> None:
    """Say something at once, also in a signal's handler, and where nobody reads it any more."""
    with contextlib.suppress(OSError):  # a broken pipe, a full disk
        try:
            print(sentence, flush=True)
        except RuntimeError:  # in the middle of another print, whose buffer takes no second text
            os.write(sys.stdout.fileno(), f"{sentence}\n".encode())


def say_how_to_stop() -> None:
    """Say it where Ctrl-C does not stop, which everybody knows."""
    if ignores_ctrl_c():
        say(f"Ctrl-C is ignored here, as in jobs in the background; `kill {os.getpid()}` saves and stops.")


def say_stopping(what: str) -> None:
    """Say what is being saved, and how to end without it.

    Args:
        what: a sentence's part, such as "a checkpoint is being saved".
    """
    say(f"\nStopping: {what}" + ("." if ignores_ctrl_c() else "; press Ctrl-C again to stop at once."))
