"""Texts that commands write for people, who may add to them: one that was edited is kept.

The last line of such a text says what stood above it when it was written.
"""

import hashlib
import re
from pathlib import Path

from .manifest import scratch_for

WRITTEN = "<!-- mla-experiments wrote this: {} -->\n"
LAST_LINE = re.compile(WRITTEN.format(r"(\w{16})") + r"\Z")


def write_text(path: Path, text: str) -> list[Path]:
    """Write a text, whole or not at all, unless another one stands there that was not written so, which is said.

    Returns:
        The path, where it was written.
    """
    if path.exists() and not is_as_written(path):
        print(f"{path} is not as a command here wrote it, and is kept; move it away to have it written anew.")
        return []
    text = text.rstrip("\n") + "\n"
    scratch = scratch_for(path)
    scratch.write_text(text + WRITTEN.format(_digest(text)), encoding="utf-8", errors="backslashreplace")
    scratch.replace(path)
    return [path]


def is_as_written(path: Path) -> bool:
    """Return whether a file holds what `write_text` wrote there, unchanged."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = LAST_LINE.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def read_text(path: Path) -> str:
    """Return a text without its last line about itself."""
    return LAST_LINE.sub("", path.read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
