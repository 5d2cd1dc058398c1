"""Which reader a file has: by a closed list of endings, in any case, and by its first bytes where those say more.

Compression is what the content says. Content that is plainly a binary table is read as one whatever its name, and said.
"""

import bz2
import gzip
import io
import lzma
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..errors import UserError, reason_of

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
        found = f"ends in {path.suffix}, which" if path.suffix else "has a name without an ending, which"
        raise UserError(
            f"corpus={path} {found} is not one of {', '.join(KINDS)}, each also compressed as "
            f"{', '.join(COMPRESSED)}; convert it, or rename it to say what it is"
        )
    try:
        start, end = _ends(path)
    except OSError as error:
        raise UserError(f"corpus={path} cannot be read ({reason_of(error)}); see its permissions") from None
    compression = next((how for magic, how in MAGIC.items() if start.startswith(magic)), "")
    kind = "" if compression else _table_of(start, end)
    if kind in ("", named):
        kind, said = named, COMPRESSED.get(path.suffix.lower(), "")
        other = f"is {compression or 'not compressed'} by its content"
        contradiction = "" if compression == said else f"{shown(path.name)} {other}, and read as such"
    else:
        contradiction = f"{shown(path.name)} is {kind} by its content, and read as such"
    if compression and kind in ("parquet", "Arrow"):
        raise UserError(f"corpus={path} is {kind} within {compression}; decompress it first")
    return DataFile(path, kind, compression, contradiction)


def open_binary(file: DataFile) -> io.BufferedReader:
    """Open a file for its bytes, decompressed."""
    if file.compression == "gzip":
        return io.BufferedReader(gzip.open(file.path))
    if file.compression == "bzip2":
        return io.BufferedReader(bz2.open(file.path))
    if file.compression == "xz":
        return io.BufferedReader(lzma.open(file.path))
    if file.compression == "zstd":  # Python has it from 3.14 on
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file.path)), "zstd"))
    return open(file.path, "rb")


def plain_name(path: Path) -> str:
    """Return the name of a file without the ending that says how it is compressed."""
    return path.stem if path.suffix.lower() in COMPRESSED else path.name


def shown(name: str | Path) -> str:
    """Return a name as text, also where its bytes are none: those are escaped."""
    return str(name).encode(errors="backslashreplace").decode()


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
