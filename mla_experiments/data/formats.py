"""Which reader a file has: by a closed list of endings, in any case, and by its first bytes where those say more.

Compression is what the content says. Content that is plainly a binary table is read as one whatever its name, and said.
"""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import UserError, printable, reason_of

KINDS = {  # ending: how it is read
    ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text",
    ".json": "JSON", ".jsonl": "JSON", ".ndjson": "JSON", ".jsonlines": "JSON",
    ".csv": "CSV", ".tsv": "TSV",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "Arrow", ".feather": "Arrow",
}  # fmt: skip
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}
MAGIC = {  # first bytes of what is compressed, and how
    b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz",
    **{b"BZh%d" % level + b"1AY&SY": "bzip2" for level in range(1, 10)},
}  # fmt: skip
LONGEST_MAGIC = 10
DECOMPRESSORS = {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}
BLOCK = 1 << 20


@dataclass(frozen=True)
class DataFile:
    """A file, how it is read, how it is compressed ("" if it is not), and in what its name says otherwise."""

    path: Path
    kind: str
    compression: str = ""
    contradiction: str = ""

    def error(self, sentence: str) -> UserError:
        """Return the error that says something of this file."""
        return UserError(f"corpus={self.path} {sentence}")


def kind_of(path: Path) -> str | None:
    """Return how a file is read by its name alone; None where the name is not in the list."""
    return KINDS.get(_ending(path))


def data_file(path: Path) -> DataFile:
    """Return how a file is read by its name and its first bytes.

    Raises:
        UserError: its name is not in the list, or the file cannot be read.
    """
    named = kind_of(path)
    if named is None:
        inner, within = _ending(path), f" within {path.suffix}" if path.suffix.lower() in COMPRESSED else ""
        found = f"ends in {inner}{within}, which" if inner else f"has a name without an ending{within}, which"
        raise UserError(
            f"corpus={path} {found} is not one of {', '.join(KINDS)}, each also compressed as "
            f"{', '.join(COMPRESSED)}; convert it, or rename it to say what it is"
        )
    try:
        start, end = _ends(path)
    except OSError as error:
        raise UserError(f"corpus={path} cannot be read ({reason_of(error)}); see its permissions") from None
    compression = compression_of(start)
    kind = "" if compression else _table_of(start, end)
    if kind in ("", named):
        kind, said = named, COMPRESSED.get(path.suffix.lower(), "")
        other = f"is {compression or 'not compressed'} by its content"
        contradiction = "" if compression == said else f"{printable(path.name)} {other}, and read as such"
    else:
        contradiction = f"{printable(path.name)} is {kind} by its content, and read as such"
    if compression and kind in ("parquet", "Arrow"):
        raise UserError(f"corpus={path} is {kind} within {compression}; decompress it first")
    return DataFile(path, kind, compression, contradiction)


def compression_of(start: bytes) -> str:
    """Return how content is compressed by its first bytes, empty where it is not."""
    return next((how for magic, how in MAGIC.items() if start.startswith(magic)), "")


def open_binary(file: DataFile) -> io.BufferedReader:
    """Open a file for its bytes, decompressed."""
    if file.compression == "gzip":
        return io.BufferedReader(gzip.open(file.path))
    if file.compression in DECOMPRESSORS:
        return io.BufferedReader(Streams(file.path, DECOMPRESSORS[file.compression]))
    if file.compression == "zstd":  # Python has it from 3.14 on
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file.path)), "zstd"))
    return open(file.path, "rb")


class Streams(io.RawIOBase):
    """The streams of a bzip2 or xz file one after another, decompressed.

    What follows a stream has to be another, or the zeros that fill up xz. Python's own readers take anything else for
    the end, and with it lose all that stands behind a damaged header.

    Args:
        path: of the file.
        decompressor: makes one for a stream.

    Raises:
        OSError, EOFError, lzma.LZMAError: when read, a stream is broken or ends early.
    """

    def __init__(self, path: Path, decompressor: Callable[[], Any]):
        self.file, self.new = open(path, "rb"), decompressor  # noqa: SIM115 - closed with this
        self.stream = decompressor()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill in the next bytes, and return how many; 0 at the end."""
        found = b""
        while not found:
            if self.stream.eof:
                rest = (self.stream.unused_data or self.file.read(BLOCK)).lstrip(b"\0")
                if not rest and not (rest := self.file.read(BLOCK).lstrip(b"\0")):
                    return 0
                self.stream = self.new()
            else:
                rest = self.file.read(BLOCK) if self.stream.needs_input else b""
                if self.stream.needs_input and not rest:
                    raise EOFError("it ends in the middle of a stream")
            found = self.stream.decompress(rest, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


def plain_name(path: Path) -> str:
    """Return the name of a file without the ending that says how it is compressed."""
    return path.stem if path.suffix.lower() in COMPRESSED else path.name


def _ending(path: Path) -> str:
    return Path(plain_name(path)).suffix.lower()


def _ends(path: Path) -> tuple[bytes, bytes]:
    with open(path, "rb") as file:
        start = file.read(LONGEST_MAGIC)
        file.seek(max(0, file.seek(0, 2) - LONGEST_MAGIC))
        return start, file.read()


def _table_of(start: bytes, end: bytes) -> str:
    """Return the kind of a binary table: their formats begin and end with their names."""
    if start.startswith(b"PAR1") and end.endswith(b"PAR1"):
        return "parquet"
    return "Arrow" if start.startswith(b"ARROW1\0\0") and end.endswith(b"ARROW1") else ""
