"""What commands say on the terminal, whatever it can show."""

import codecs
import os
import sys
from pathlib import Path


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
    """Return the sentence of an error, on one line: line breaks and controls in what somebody typed are escaped."""
    return "error: " + "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(reason))


def wrote(what: Path | str, details: str, following: str, say_next: bool = True) -> None:
    """Say what was written and what to run next."""
    print(f"Wrote {what} ({details})." + (f"\nNext: {following}" if say_next else ""))
