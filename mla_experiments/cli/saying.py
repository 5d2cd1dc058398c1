"""What commands say on the terminal, whatever it can show."""

import codecs
import os
import sys
from pathlib import Path

from ..errors import printable
from ..next_step import as_typed_here


def make_any_terminal_do() -> None:
    """Have what a terminal or a file cannot show written as escapes, in place of failing.

    Where the locale knows ASCII alone, the process starts anew in UTF-8 mode: names of files come in any script.
    """
    if not sys.flags.utf8_mode and codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def refusal(reason: object) -> str:
    """Return the sentence of an error, on one line, with the commands in it as they are typed here."""
    return f"error: {as_typed_here(printable(reason))}"


def say_last(sentence: str, code: int, is_error: bool) -> int:
    """Say how a command ended, and return its exit code, which is 2 where its output could not be written.

    Whoever read it may have gone, as `| head` does, which is no fault: nothing more is said to them. What waits to be
    written then goes nowhere; Python would try once more while it ends, and make the exit code 120.
    """
    lost = None
    for stream, said in ((sys.stdout, "" if is_error else sentence), (sys.stderr, sentence if is_error else "")):
        try:
            if said:
                print(said, file=stream)
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            lost = error if stream is sys.stdout and not isinstance(error, BrokenPipeError) else lost
    if lost and code == 0:
        return say_last(
            f"error: the output cannot be written ({lost.strerror}); give it another place", 2, is_error=True
        )
    return code


def wrote(what: Path | str, details: str, following: object, say_next: bool = True) -> None:
    """Say what was written and what to run next."""
    then = [f"Next: {as_typed_here(printable(following))}"] if say_next else []
    print(printable(f"Wrote {what} ({details})."), *then, sep="\n")
