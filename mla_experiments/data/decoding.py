"""From bytes to lines of text: nothing is changed but the byte order mark, which goes; what is no text is named.

UTF-8, or UTF-16 and UTF-32 where a byte order mark says so. Line ends stay as they stand.
"""

import codecs
import lzma
import zlib
from collections.abc import Iterator
from io import TextIOWrapper

import pyarrow as pa

from ..errors import UserError, reason_of
from .formats import BLOCK, LONGEST_MAGIC, DataFile, compression_of, open_binary

MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException)  # what decompression ends in


def lines(file: DataFile, newline: str = "\n", most: int = -1, zeros: bool = False) -> Iterator[str]:
    r"""Yield the lines of a file with their ends; joined they are its text.

    Args:
        file: text, perhaps compressed.
        newline: what ends a line, as in `open`: "\n", or "" for \r and \r\n too.
        most: characters; longer lines come in pieces.
        zeros: let zero characters pass, which text files do not hold.

    Raises:
        UserError: it is no text, with the place, or cannot be read or decompressed.
    """
    try:
        with open_binary(file) as binary:
            text = TextIOWrapper(binary, encoding=encoding_of(binary.peek(4)), newline=newline)
            while line := text.readline(most):
                if not zeros and "\0" in line:
                    raise file.error("is binary (it holds a zero byte); give a text file in UTF-8")
                yield line
    except UnicodeError:
        if inner := compression_within(file):
            raise file.error(
                f"is {inner} within {file.compression}; decompress it once, and name what is left"
            ) from None
        raise file.error(f"{_undecodable(file)}; convert it, for instance with iconv -t UTF-8") from None
    except BROKEN as error:
        how = f"decompressed as {file.compression}" if file.compression else "read"
        raise file.error(f"cannot be {how} ({reason_of(error)}); fetch or make it again") from None


def encoding_of(start: bytes) -> str:
    """Return the encoding that a file's first bytes say, UTF-8 where they say none."""
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "utf-8")


def compression_within(file: DataFile) -> str:
    """Return how a compressed file is compressed once more inside, empty where it is not."""
    if not file.compression:
        return ""
    with open_binary(file) as binary:
        return compression_of(binary.peek(LONGEST_MAGIC))


def whole_text(text: str, where: str) -> str:
    """Return a text that UTF-8 can hold.

    Raises:
        UserError: it holds half of a surrogate pair; `where` it stands.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds \\u{ord(text[error.start]):04x}, half of a surrogate pair, at character {error.start + 1}: "
            "that is no Unicode text; mend it there"
        ) from None
    return text


def _undecodable(file: DataFile) -> str:
    """Say where a file that is no text stops being one; it is read again for that."""
    offset, line = 0, 1
    with open_binary(file) as binary:
        encoding = encoding_of(binary.peek(4))
        name, decoder = encoding.removesuffix("-sig").upper(), codecs.getincrementaldecoder(encoding)()
        while True:
            block, kept = binary.read(BLOCK), len(decoder.getstate()[0])
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].decode(encoding, "ignore").count("\n")
                place = offset - kept + error.start
                return f"is not {name} text (byte 0x{error.object[error.start]:02x}) at offset {place}, line {line}"
            if not block:
                return f"is not {name} text"
            offset += len(block)
