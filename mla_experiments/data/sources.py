"""Where documents come from: files and folders here, the offline sample, data sets on the Hugging Face hub.

Every source yields documents as they stand in the original, so that words and bytes can be counted against it.
"""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError, reason_of
from .wiki_sample import wiki_sample
from .wikitext import articles, is_title

WIKITEXT_HUB_NAMES = {
    "wikitext-2": "hub:Salesforce/wikitext:wikitext-2-raw-v1",
    "wikitext-103": "hub:Salesforce/wikitext:wikitext-103-raw-v1",
}
SPLITS = ("train", "validation", "test")
HUB_PATIENCE = 12.0  # seconds to wait for the hub's first answer
FILE_TYPES = (".txt", ".jsonl", ".json", ".parquet")
LOOKAHEAD = 300  # rows or lines read to tell whether a text is in WikiText's format
PASSAGE = 4_000  # characters: a passage ends at the first blank line after so many,
LONGEST_PASSAGE = 64_000  # or at the end of the line after so many
LINE_CHUNK = 1 << 20  # characters read at once from a line without an end


def open_corpus(corpus: str, text_column: str) -> dict[str, Iterator[str]]:
    """Return the documents of a corpus for each split that it comes with; "train" alone where it has none.

    Args:
        corpus: "wikitext-2", "wikitext-103", "wiki-sample", "hub:NAME[:CONFIG]", or a path.
        text_column: which column holds the text of JSON lines, parquet and hub data sets.

    Raises:
        UserError: unknown, absent, unreachable, binary or not UTF-8.
    """
    corpus = WIKITEXT_HUB_NAMES.get(corpus, corpus)
    if corpus == "wiki-sample":
        return {"train": wiki_sample()}
    if corpus.startswith("hub:"):
        return _hub_documents(corpus, text_column)
    return {"train": read_documents(Path(corpus), text_column, passages=True)}


def read_documents(path: Path, text_column: str = "text", *, passages: bool = False) -> Iterator[str]:
    """Yield the documents of a text file, a JSON-lines or parquet file, or a folder of such files.

    A text in WikiText's format gives its articles, a row of JSON lines or parquet is a document, a text file in a
    folder too. A single plain text file is one document, or, with `passages`, runs of whole paragraphs.
    """
    if not path.exists():
        known = ", ".join(("auto", *WIKITEXT_HUB_NAMES, "wiki-sample", "hub:NAME[:CONFIG]"))
        raise UserError(f"corpus={path} is no file or folder here; give a path, or one of {known}")
    if path.is_file():
        yield from _read_file(path, text_column, passages)
        return
    files = sorted(file for file in path.rglob("*") if file.suffix in FILE_TYPES and file.is_file())
    if not files:
        raise UserError(f"corpus={path} is a folder without any {', '.join(FILE_TYPES)} file; give one with text")
    for file in files:
        if not file.resolve().is_relative_to(path.resolve()):
            raise UserError(f"corpus={path} holds {file.name}, a link that leads out of it; copy the file itself there")
        yield from _read_file(file, text_column, passages=False)


def _read_file(path: Path, text_column: str, passages: bool) -> Iterator[str]:
    if path.suffix == ".parquet":
        return _split_rows(_parquet_rows(path, text_column))
    if path.suffix in (".jsonl", ".json"):
        return _split_rows(_json_rows(path, text_column))
    return _split_text(_text_lines(path), passages)


def _split_text(lines: Iterator[str], passages: bool) -> Iterator[str]:
    head = list(itertools.islice(lines, LOOKAHEAD))
    lines = itertools.chain(head, lines)
    if any(map(is_title, head)):
        yield from articles(lines)
    elif passages:
        yield from _passages(lines)
    else:
        yield "".join(lines)


def _split_rows(rows: Iterator[str]) -> Iterator[str]:
    """A row is a document, except where rows are WikiText's lines: those make articles."""
    head = list(itertools.islice(rows, LOOKAHEAD))
    rows = itertools.chain(head, rows)
    if any(map(is_title, head)):
        return articles(row if not row or row.endswith("\n") else row + "\n" for row in rows)
    return rows


def _passages(lines: Iterable[str]) -> Iterator[str]:
    """Cut a long plain text between paragraphs; the passages joined are the text."""
    passage, length = [], 0
    for line in lines:
        passage.append(line)
        length += len(line)
        if length >= LONGEST_PASSAGE or (length >= PASSAGE and not line.strip()):
            yield "".join(passage)
            passage, length = [], 0
    if passage:
        yield "".join(passage)


def _text_lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="") as file:
        try:
            while line := file.readline(LINE_CHUNK):
                if "\0" in line:
                    raise UserError(f"corpus={path} is binary (it holds a zero byte); give a text file in UTF-8")
                yield line
        except UnicodeDecodeError as error:
            raise UserError(
                f"corpus={path} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); "
                "convert it, for instance with iconv -t UTF-8"
            ) from None


def _json_rows(path: Path, text_column: str) -> Iterator[str]:
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"corpus={path} line {number} is not JSON; give one JSON object a line") from None
        yield text_of(row if isinstance(row, dict) else {}, text_column, f"{path} line {number}")


def _parquet_rows(path: Path, text_column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            text_of(dict.fromkeys(file.schema_arrow.names, ""), text_column, str(path))
            for batch in file.iter_batches(batch_size=1000, columns=[text_column]):
                for row in batch.to_pylist():
                    yield text_of(row, text_column, str(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"corpus={path} is not a readable parquet file ({reason_of(error)})") from None


def text_of(row: dict, text_column: str, where: str) -> str:
    """Return the text of a row.

    Raises:
        UserError: that column holds none; `where` the row stands.
    """
    if isinstance(row.get(text_column), str):
        return row[text_column]
    raise UserError(
        f"text_column={text_column} holds no text in {where}; it has {', '.join(row) or 'no columns'}: "
        "choose with --text-column"
    )


def name_and_config(corpus: str) -> tuple[str, str | None]:
    """Return name and configuration of "hub:NAME[:CONFIG]"; what does not begin with "hub:" is a name as it stands."""
    if not corpus.startswith("hub:"):
        return corpus, None
    name, _, config = corpus.removeprefix("hub:").partition(":")
    return name, config or None


def hub_is_reachable(patience: float = HUB_PATIENCE) -> bool:
    """Return whether the Hugging Face hub answers within `patience` seconds, even where name look-ups hang."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask():
        with contextlib.suppress(Exception):  # whatever stands in the way, the hub cannot be reached
            answers.append(get_session().head(constants.ENDPOINT, timeout=patience))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(answers)


def give_up_on_an_unreachable_hub() -> None:
    """Work offline where the hub does not answer: a local copy may still serve, and retrying would take minutes."""
    import datasets
    import huggingface_hub

    if not hub_is_reachable():
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True


def _hub_documents(corpus: str, text_column: str) -> dict[str, Iterator[str]]:
    import datasets

    name, config = name_and_config(corpus)
    give_up_on_an_unreachable_hub()
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:
        raise UserError(
            f"corpus={corpus} cannot be had from the Hugging Face hub ({reason_of(error)}); check the name and the "
            "network, or choose --corpus wiki-sample or a path"
        ) from None
    if "train" not in loaded:
        raise UserError(f"corpus={corpus} has no split named train; it has {', '.join(loaded)}")

    def rows(split):
        return (text_of(row, text_column, f"{corpus}, split {split}") for row in loaded[split])

    return {split: _split_rows(rows(split)) for split in SPLITS if split in loaded}
