"""Documents of local files, and how they were read: which documents a file gives is decided here, and said.

A row of a table is a document. A text file in a folder is one too; one alone is a document, or cut into passages where
documents are to be held out. WikiText's lines, recognised by their layout all through, give its articles.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import UserError, printable
from .decoding import lines
from .folders import Skipped, files_of, said
from .formats import DataFile, data_file
from .tables import TABLES, column_texts
from .wikitext import HEAD, articles, could_be_wikitext, is_wikitext

TEXT_COLUMN = "text"  # where the user names none
PASSAGE = 4_000  # characters: a passage ends at the first blank line after so many,
WITHOUT_BLANKS = 8_000  # or at the end of the line after so many: some texts have a paragraph a line and none between
LINE_CHUNK = 1 << 20  # characters read at once from a line without an end
WORDS = re.compile(rf"(?s).{{{WITHOUT_BLANKS}}}\S*\s")  # so many characters, and on to the end of a word
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")  # as the hub names the parts of one table
NULL, EMPTY = "without a text (null)", "without a word"  # why a document is left out
AS_TABLE, AS_FILE = "one a row", "one a file"
AS_PASSAGES, AS_ARTICLES = "cut between paragraphs", "articles of WikiText, by its headings"


@dataclass
class Reading:
    """How a corpus was read; filled in while its documents are.

    Args:
        corpus: its name.
    """

    corpus: str
    documents: Counter = field(default_factory=Counter)  # (kind of file, what a document is): how many
    files: Counter = field(default_factory=Counter)  # the same, of files
    left_out: Counter = field(default_factory=Counter)  # why: documents
    skipped: Skipped = field(default_factory=dict)  # what it is: files
    notes: list[str] = field(default_factory=list)

    def kept(self, documents: Iterable[str | None], kind: str, unit: str) -> Iterator[str]:
        """Yield the documents that hold text, and count them and the others."""
        for text in documents:
            if text is None:
                self.left_out[NULL] += 1
            elif not text.strip():
                self.left_out[EMPTY] += 1
            else:
                self.documents[kind, unit] += 1
                yield text

    @property
    def seen(self) -> int:
        """How many documents there were so far, those that were left out among them."""
        return self.documents.total() + self.left_out.total()

    def sentences(self) -> list[str]:
        """Return what was read and how, what was left out, and what is not as it seemed."""
        parts = [
            f"{self.documents[key]:,} {'document' if self.documents[key] == 1 else 'documents'} of "
            f"{f'{count} {key[0]} files' if (count := self.files[key]) > 1 else key[0]}, {key[1]}"
            for key in self.documents
        ]
        corpus = printable(self.corpus)
        told = [f"Read {corpus}: {'; '.join(parts)}."]
        if self.left_out:
            told.append(f"Left out: {self.left_out_in_words()}.")
        if self.skipped:
            told.append(f"Not read in {corpus}: {said(self.skipped)}.")
        return told + [f"Note: {note}." for note in self.notes]

    def left_out_in_words(self) -> str:
        """Return how many documents were left out, by why."""
        return ", ".join(
            f"{count:,} {'document' if count == 1 else 'documents'} {why}" for why, count in self.left_out.items()
        )

    def record(self) -> dict:
        """Return the same for a manifest."""
        named = {"documents": self.documents, "files": self.files}
        record = {name: {", ".join(key): n for key, n in counts.items()} for name, counts in named.items()}
        left = {"left_out": dict(self.left_out), "skipped": self.skipped, "notes": self.notes}
        return record | {name: value for name, value in left.items() if value}


def local_files(path: Path, text_column: str = TEXT_COLUMN) -> tuple[list[DataFile], Skipped]:
    """Return the files that a local corpus is read from, in order, and what else is there.

    Raises:
        UserError: it is not there, has nothing to read, or a column is asked for where no table is.
    """
    if path.is_dir():
        files, skipped = files_of(path)
    elif path.is_file():
        files, skipped = [data_file(path)], {}
    else:
        raise UserError(f"corpus={path} is no file or folder here; give the path of one")
    if text_column != TEXT_COLUMN and not any(file.kind in TABLES for file in files):
        raise UserError(f"text_column={text_column} is for tables, but corpus={path} is plain text; leave it out")
    return files, skipped


def read_documents(
    path: Path, text_column: str = TEXT_COLUMN, *, passages: bool = False, reading: Reading | None = None
) -> Iterator[str]:
    """Yield the documents of a file, or of the files in a folder and below, in the order of their names.

    Args:
        path: where; `formats.KINDS` lists which files are read.
        text_column: which column of tables holds the text.
        passages: cut a single plain text into runs of whole paragraphs; otherwise it is one document.
        reading: filled in with what is decided and left out.

    Raises:
        UserError: it is not there, of an unknown or broken format, no text, or empty.
    """
    reading = reading or Reading(str(path))
    files, skipped = local_files(path, text_column)
    reading.skipped |= skipped
    reading.notes += [file.contradiction for file in files if file.contradiction]
    for _, parts in itertools.groupby(files, key=_table_name):
        group = list(parts)
        kind = group[0].kind
        if kind in TABLES:
            unit, documents = documents_of_rows(partial(_rows, group, text_column))
        else:
            unit, documents = _documents_of_text(group[0], passages and path.is_file())
        reading.files[kind, unit] += len(group)
        before = reading.seen
        yield from reading.kept(documents, kind, unit)
        if reading.seen == before and path.is_dir():
            names = [printable(file.path.relative_to(path).as_posix()) for file in group]
            reading.skipped.setdefault("without a row", []).extend(names)
    if not reading.documents:
        why = f" ({reading.left_out_in_words()})" if reading.left_out else ""
        raise UserError(f"corpus={path} holds no text{why}; give one that does")


def documents_of_rows(rows: Callable[[], Iterator[str | None]]) -> tuple[str, Iterator[str | None]]:
    """Return what a document is, and the documents: rows, or the articles that they are the lines of.

    Args:
        rows: gives them from the first, as often as it is called.
    """
    first = rows()
    head = list(itertools.islice(first, HEAD))
    if could_be_wikitext(row or "" for row in head) and is_wikitext(row or "" for row in rows()):
        return AS_ARTICLES, row_articles(rows())
    return AS_TABLE, itertools.chain(head, first)


def row_articles(rows: Iterable[str | None]) -> Iterator[str]:
    """Yield the articles whose lines are rows, as the hub serves WikiText: blank lines empty, or nulls."""
    return articles(row if not row or row.endswith("\n") else row + "\n" for row in (row or "" for row in rows))


def _table_name(file: DataFile) -> tuple:
    """The shards of one table share this, and no other files do; a text is whole, whatever it is called."""
    name = file.path.name
    return file.path.parent, SHARD.sub("", name) if file.kind in TABLES else name, file.kind


def _rows(files: list[DataFile], text_column: str) -> Iterator[str | None]:
    return itertools.chain.from_iterable(column_texts(file, text_column) for file in files)


def _documents_of_text(file: DataFile, passages: bool) -> tuple[str, Iterator[str]]:
    def all_lines():
        return lines(file, newline="", most=LINE_CHUNK)

    first = all_lines()
    head = list(itertools.islice(first, HEAD))
    if could_be_wikitext(head) and is_wikitext(all_lines()):
        return AS_ARTICLES, articles(all_lines())
    text = itertools.chain(head, first)
    return (AS_PASSAGES, _passages(_between_words(text))) if passages else (AS_FILE, iter(["".join(text)]))


def _between_words(text_lines: Iterable[str]) -> Iterator[str]:
    """Yield lines as they are, and those without an end, which come in pieces, cut where a word ends."""
    rest, is_going_on = "", False
    for line in text_lines:
        if not is_going_on and len(line) < LINE_CHUNK:
            yield line
            continue
        rest, is_going_on = rest + line, len(line) == LINE_CHUNK
        while end := WORDS.match(rest):
            yield end[0]
            rest = rest[end.end() :]
        if not is_going_on or len(rest) >= LINE_CHUNK:  # its end, or text that has no words
            yield rest
            rest = ""
    yield rest


def _passages(text_lines: Iterable[str]) -> Iterator[str]:
    """Cut a long plain text between paragraphs; the passages joined are the text."""
    passage, length = [], 0
    for line in text_lines:
        passage.append(line)
        length += len(line)
        if length >= WITHOUT_BLANKS or (length >= PASSAGE and not line.strip()):
            yield "".join(passage)
            passage, length = [], 0
    if passage:
        yield "".join(passage)
