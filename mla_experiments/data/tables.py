"""Rows of JSON, CSV, TSV, Parquet and Arrow files: the text of one column, as it stands there.

`datasets`' own loaders for JSON and CSV are not used: they infer types, so that a text `NA` becomes nothing and a text
`2026-01-31` a date. Here a text stays what it is, and what is no text is refused.
"""

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain, islice

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from ..errors import UserError, reason_of
from .decoding import lines, whole_text
from .formats import DataFile

HEAD = 300  # rows of JSON; where none of them has the column, it is not looked for in the others
LONGEST_FIELD = 2**31 - 1  # characters in a field of CSV
ROWS_AT_ONCE = 1000
ENDS = "convert its line ends, for instance with tr '\\r' '\\n'"
SEPARATOR = re.compile(r"[;|\t,]")  # of fields, in a first line that should have another
TABLES = ("JSON", "CSV", "TSV", "parquet", "Arrow")


def column_texts(file: DataFile, column: str) -> Iterator[str | None]:
    """Yield the text of each row of a table, None where there is none.

    Raises:
        UserError: it is not such a table, has no such column, or holds something else there than text; with the row.
    """
    if file.kind == "JSON":
        return _json_texts(file, column)
    if file.kind in ("CSV", "TSV"):
        return _csv_texts(file, column, "," if file.kind == "CSV" else "\t")
    return _arrow_texts(file, column)


def text_of(value: object, column: str, where: str) -> str | None:
    """Return the text in a column of a row, None for a null.

    Raises:
        UserError: it is something else, or no Unicode text; `where` it stands.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return whole_text(value, f"text_column={column} of {where}")
    raise UserError(
        f"text_column={column} holds no text in {where}, but {reason_of(TypeError(value))[:60]} "
        f"({type(value).__name__}); write it as text, or choose another column with --text-column"
    )


def no_column(column: str, where: str, names: list[str]) -> UserError:
    """Return the error for a column that is not there, with those that are."""
    there = ", ".join(names) or "no columns"
    shown = there if len(there) <= 300 else there[:300] + " ..."
    near = next((name for name in names if name.strip().lower() == column.lower()), None)
    choice = f"--text-column {near!r}" if near else "choose with --text-column"
    return UserError(f"text_column={column} holds no text in {where}; it has {shown}: {choice}, or leave that file out")


class _Repeated(dict):
    """An object that names a field more than once."""


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeated(found)


def _parsed(text: str, file: DataFile, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if "\r" in text.strip("\r\n"):
            raise file.error(f"{where} holds a carriage return without a line feed; {ENDS}") from None
        raise file.error(
            f"{where} is not JSON ({reason_of(error)}); give one JSON object a line, or an array of objects".strip()
        ) from None


def _json_rows(file: DataFile) -> Iterator[tuple[str, object]]:
    """Yield where each object stands, and the object: of an array, of a file that is one object, or one a line."""
    numbered = ((number, line) for number, line in enumerate(lines(file), start=1) if line.strip())
    opening = list(islice(numbered, 1))
    first = opening[0][1] if opening else ""
    start = first.lstrip()
    if start.startswith("[") or (start.startswith("{") and start.rstrip().endswith(("{", "[", ","))):
        whole = _parsed("".join(chain([first], (line for _, line in numbered))), file, "")
        rows = whole if isinstance(whole, list) else [whole]
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in chain(opening, numbered):
        yield f"line {number}", _parsed(line, file, f"line {number}")


def _json_texts(file: DataFile, column: str) -> Iterator[str | None]:
    seen, absent = 0, list[None]()
    names: dict[str, None] = {}
    for where, row in _json_rows(file):
        if not isinstance(row, dict):
            raise file.error(f"{where} is {json.dumps(row)[:60]}, not an object; give objects with a field {column}")
        if isinstance(row, _Repeated):
            raise file.error(f"{where} names a field twice ({', '.join(row)[:200]}); keep one of them")
        if column in row:
            seen += 1
            yield from chain(absent, [text_of(row[column], column, f"{file.path} {where}")])
            absent = []
            continue
        names |= dict.fromkeys(row)
        absent.append(None)
        if not seen and len(absent) >= HEAD:
            break
    if absent and not seen:
        where = str(file.path) if len(absent) < HEAD else f"the first {HEAD} rows of {file.path}"
        raise no_column(column, where, list(names))
    yield from absent


def _csv_texts(file: DataFile, column: str, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(lines(file, zeros=True), delimiter=delimiter, strict=True)
    try:
        names = next((row for row in reader if row), [])
        if not names:
            return
        if names != [column] and len(names) == 1 and (other := SEPARATOR.search(names[0])):
            raise file.error(f"parts its fields with {other[0]!r}, not with {delimiter!r}; write it anew, tabs as .tsv")
        if names.count(column) != 1:
            raise no_column(column, str(file.path), names) if column not in names else _twice(file, column)
        place = names.index(column)
        for row in reader:
            if row and len(row) != len(names):
                raise file.error(
                    f"line {reader.line_num} ends a row of {len(row)} fields, but the first line names {len(names)}; "
                    'put fields that hold separators, quotes or line ends between ", with every " in them doubled'
                )
            if row:
                yield whole_text(row[place], f"text_column={column} of {file.path} line {reader.line_num}")
    except csv.Error as error:
        if "new-line character" in str(error):
            raise file.error(f"line {reader.line_num} holds a carriage return without a line feed; {ENDS}") from None
        raise file.error(
            f"line {reader.line_num} is not {file.kind} ({reason_of(error)}); put fields that hold separators, quotes "
            'or line ends between ", with every " in them doubled'
        ) from None


def _twice(file: DataFile, column: str) -> UserError:
    return file.error(f"has the column {column} more than once; rename one of them")


def _arrow_texts(file: DataFile, column: str) -> Iterator[str | None]:
    try:
        with pa.OSFile(str(file.path)) as binary:
            schema, batches = (_parquet if file.kind == "parquet" else _arrow)(binary, column)
            if schema.names.count(column) != 1:
                absent = column not in schema.names
                raise no_column(column, str(file.path), schema.names) if absent else _twice(file, column)
            check_type(schema.field(column).type, column, str(file.path))
            row = 0
            for batch in batches:
                for value in batch.column(column):
                    row += 1
                    yield decoded(value, f"corpus={file.path} row {row}")
    except (pa.ArrowException, OSError) as error:
        raise file.error(f"is not a readable {file.kind} file ({reason_of(error)}); fetch or make it again") from None


def _parquet(binary: pa.NativeFile, column: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    file = ParquetFile(binary)
    return file.schema_arrow, file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column])


def _arrow(binary: pa.NativeFile, column: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open either of Arrow's two forms: the file, and the stream, in which `datasets` keeps its own."""
    start = binary.read(6)
    if start.startswith(b"FEA1"):
        raise pa.ArrowInvalid("it is Feather V1, which is no longer read: write it as V2")
    if start == b"ARROW1":
        file = pa.ipc.open_file(binary)
        return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    binary.seek(0)
    stream = pa.ipc.open_stream(binary)
    return stream.schema, iter(stream)


def check_type(column_type: pa.DataType, column: str, where: str) -> None:
    """Refuse a column whose type is not text; one of nulls alone has no type, and passes."""
    inner = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_text(inner) for is_text in texts):
        raise UserError(
            f"text_column={column} of {where} is of type {column_type}, which is no text; choose another with "
            "--text-column"
        )


def decoded(value: pa.Scalar, where: str) -> str | None:
    """Return the text of a cell of Arrow, which need not be UTF-8 though its type says so.

    Raises:
        UserError: it is not; `where` it stands.
    """
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at offset {error.start} of its text); "
            "mend it there"
        ) from None
