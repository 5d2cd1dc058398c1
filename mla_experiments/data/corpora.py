"""The corpus folder: train, validation and test documents, disjoint, memory-mapped, with their counts."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from ..errors import UserError, printable, reason_of
from ..manifest import is_current, is_inside, new_folder, read_manifest, read_whole
from ..next_step import Step
from .decoding import whole_text
from .reading import TEXT_COLUMN, Reading, local_files
from .sources import NAMED, SPLITS, name_and_config, open_corpus
from .streaming import DocumentStream, first_documents
from .synthetic import is_synthetic
from .synthetic.prepared import prepare_task

MADE_BY = Step("data/download_data.py", "data download")
HELD_OUT_SHARE = 0.1  # of the characters, for validation and for test each, where a corpus has no splits of its own
HELD_OUT_PARTS = 3  # a held-out split has at most one document in so many
HELD_OUT_MOST = 2_000_000  # characters of a held-out split; more would only make evaluation slow
READERS = 5  # raised where the same files give other documents or splits than before; new endings need no raise
FEATURES = Features({"text": Value("large_string")})

FALLBACK_WARNING = """
{line}
WARNING: WikiText-103 could not be fetched: {reason}
Using the small offline sample (wiki-sample, 107 Wikipedia articles) INSTEAD. Results are NOT on WikiText.
{line}
"""


def prepare_corpus(
    folder: Path, corpus: str = "auto", text_column: str = TEXT_COLUMN, sample_characters: int | None = None
) -> dict:
    """Write the corpus to `folder`, one memory-mapped data set a split, and return its manifest.

    Of a streamed corpus only its first documents are written: those held out, and those that train the tokenizer.

    Args:
        folder: where to; what is there from another corpus is replaced once the new one is whole.
        corpus: "auto" (WikiText-103, or the offline sample where the hub cannot be reached), "synthetic:NAME" (see
            `synthetic.task_of`), or see `open_corpus`.
        text_column: which column holds the text of tables and hub data sets.
        sample_characters: stream the corpus (see `DocumentStream`) and write so many characters of it; None writes all.

    Raises:
        UserError: the corpus cannot be had, is empty, or is too small to split.
    """
    if sample_characters is not None and sample_characters < 1:
        raise UserError(f"sample_characters={sample_characters} must be at least 1")
    whole_text(corpus, "corpus")
    if not corpus.strip():
        raise UserError(f"corpus={corpus} names nothing; give a file, a folder, or one of {', '.join(NAMED)}")
    if is_synthetic(corpus):
        if sample_characters or text_column != TEXT_COLUMN:
            given = "--streaming" if sample_characters else f"text_column={text_column}"
            raise UserError(f"corpus={corpus} is drawn, not read, so that {given} has no effect; leave it out")
        return prepare_task(folder, corpus)
    if corpus in NAMED and text_column != TEXT_COLUMN:
        raise UserError(f"text_column={text_column} is for your own tables, and corpus={corpus} has none; leave it out")
    if corpus != "auto" or sample_characters:
        return _prepare(folder, corpus, text_column, sample_characters)
    try:
        return _prepare(folder, "wikitext-103", text_column)
    except UserError as error:
        print(FALLBACK_WARNING.format(line="=" * 100, reason=error), flush=True)
        return _prepare(folder, "wiki-sample", text_column)


def load_corpus(folder: Path) -> DatasetDict:
    """Return the splits of a prepared corpus, each with a column `text`, a document a row."""
    manifest = read_whole(folder, MADE_BY)
    if "task" in manifest:
        raise UserError(f"corpus={manifest['corpus']} is drawn and holds no text; give one that does")
    return DatasetDict({split: load_split(Path(folder) / split) for split in SPLITS})


def load_split(folder: Path) -> Dataset:
    """Return one memory-mapped data set.

    Raises:
        UserError: its files cannot be read, or name data that lie elsewhere.
    """
    try:
        files = [part["filename"] for part in json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]]
        if all(map(is_inside, files)):
            return Dataset.load_from_disk(str(folder))
        reason = f"state.json names {next(name for name in files if not is_inside(name))}, which is not in its folder"
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = reason_of(error)
    raise UserError(f"{folder} cannot be read ({reason}); delete {folder.parent} and make it again")


def _prepare(folder: Path, corpus: str, text_column: str, sample_characters: int | None = None) -> dict:
    request = _request(corpus, text_column, sample_characters)
    if is_current(folder, request):
        print(printable(f"{folder} already holds {corpus}; nothing to do."))
        return read_manifest(folder, MADE_BY)
    reading = Reading(corpus)
    with new_folder(folder, request) as (scratch, manifest):
        manifest |= {"corpus": corpus, "splits": {}}
        if sample_characters:
            stream = DocumentStream(corpus, text_column)
            manifest["stream"] = stream.source
            opened = {"train": first_documents(stream, sample_characters, reading)}
        else:
            opened = open_corpus(corpus, text_column, reading)
        documents = {
            split: _write_documents(scratch / f"{split}.arrow", texts, printable(f"{corpus}: reading {split}"))
            for split, texts in opened.items()
        }
        print(*reading.sentences(), sep="\n")
        manifest["reading"] = reading.record()
        splits = _complete_splits(documents, corpus)
        for split, dataset in splits.items():
            dataset.save_to_disk(str(scratch / split))
            manifest["splits"][split] = _count(dataset)
        for leftover in scratch.glob("*.arrow"):
            leftover.unlink()
        digest = "".join(counts["hash"] for counts in manifest["splits"].values())
        manifest["hash"] = hashlib.sha256(digest.encode()).hexdigest()
    return manifest


def _request(corpus: str, text_column: str, sample_characters: int | None) -> dict:
    """Return what a prepared corpus answers: a changed local file is read again, and so is one that was read otherwise.

    What was fetched by earlier readers stays as it is: its source may be out of reach.
    """
    request = {"corpus": corpus, "text_column": text_column, "source": _fingerprint(corpus)}
    if sample_characters:
        return request | {"sample_characters": sample_characters}
    if corpus in NAMED or corpus.startswith("hub:") or not Path(corpus).exists():
        return request
    files, _ = local_files(Path(corpus), text_column)
    return request | {"source": _states([file.path for file in files]), "readers": READERS}


def is_prepared(corpus: str, folder: Path) -> bool:
    """Return whether a corpus is the one in a folder: by its name, or by whichever path to the files that it was.

    Raises:
        UserError: it is not, but has some of these files, or is another by the same name.
    """
    if corpus == "auto":
        return True
    try:
        manifest = read_manifest(folder, "")
    except UserError:  # none, or a damaged one: the corpus is then what its name says, a path
        return False
    is_named, before = corpus == manifest["corpus"], manifest["request"].get("source")
    if not before or corpus in NAMED or not Path(corpus).exists():
        return is_named
    now = _states_of(corpus, manifest)
    if now == before:
        return True
    was = [path for path, *_ in before]
    if shared := [path for path, *_ in now or () if path in was]:
        raise UserError(
            f"corpus={corpus} has {shared[0]}, which {folder} was prepared from as it was then, and models may have "
            "been trained on; leave it out for the text that is held out, or give other text"
        )
    if is_named:
        raise UserError(
            f"corpus={corpus} is another than {was[0]}, which {folder} was prepared from by that name; leave it out "
            "for the text that is held out, or give its whole path"
        )
    return False


def _states_of(corpus: str, manifest: dict) -> list | None:
    """Return the state that the files of a corpus are in now, as the manifest of a prepared one has it of its own."""
    request = manifest["request"]
    return _request(corpus, request["text_column"], request.get("sample_characters"))["source"]


def _fingerprint(corpus: str) -> list | None:
    """The state of all files of a folder, as far as `datasets` may read them; None for what is no folder here."""
    path = Path(name_and_config(corpus)[0])
    if corpus in NAMED or not path.is_dir():
        return None
    return _states(sorted(file for file in path.rglob("*") if file.is_file()))


def _states(files: list[Path]) -> list:
    """Names, sizes and times of files."""
    return [[printable(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _write_documents(path: Path, texts: Iterable[str], description: str) -> Dataset:
    """Write the documents that hold any text to an Arrow file, a few at a time, and map it into memory."""
    with ArrowWriter(path=str(path), features=FEATURES) as writer:
        for batch in _batches(tqdm((text for text in texts if text.strip()), description, unit=" documents")):
            writer.write_table(pa.table({"text": pa.array(batch, pa.large_string())}))
        if len(writer) == 0:
            writer.write_table(pa.table({"text": pa.array([], pa.large_string())}))
        writer.finalize()
    return Dataset.from_file(str(path))


def _batches(texts: Iterable[str], most_characters: int = 4_000_000) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= most_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _complete_splits(documents: dict[str, Dataset], corpus: str) -> dict[str, Dataset]:
    """Take the splits that are missing out of the training documents, and refuse any that is empty."""
    if len(documents["train"]) == 0:
        raise UserError(f"corpus={corpus} holds no text; give one that does")
    missing = [split for split in SPLITS if split not in documents]
    if missing:
        documents = {**documents, **_hold_out(documents["train"], missing, corpus)}
    for split in SPLITS:
        if len(documents[split]) == 0:
            raise UserError(f"corpus={corpus} has an empty split {split}; give one that holds text")
    return {split: documents[split] for split in SPLITS}


def _hold_out(train: Dataset, missing: list[str], corpus: str) -> dict[str, Dataset]:
    """Choose held-out documents in the order of their hashes: stable, and equal texts never part.

    The choice depends on the documents alone, not on their order, and no text stands in two splits. Documents longer
    than a split are trained on, as long as there are others, and most documents are: one book among notes is not held
    out, nor are all the notes.
    """
    groups: dict[bytes, list[int]] = {}  # hash of a text -> the rows that hold it
    lengths: dict[bytes, int] = {}
    for row, text in enumerate(text for batch in train.iter(batch_size=100) for text in batch["text"]):
        key = hashlib.sha256(text.encode()).digest()
        groups.setdefault(key, []).append(row)
        lengths[key] = lengths.get(key, 0) + len(text)
    if len(groups) <= len(missing):
        of_all = len(groups) if len(groups) == len(train) else f"{len(groups)} different ones of {len(train)}"
        raise UserError(
            f"corpus={corpus} has too few documents ({of_all}) to hold out "
            f"{' and '.join(missing)}; give more text, or text in more files"
        )
    quota = min(HELD_OUT_SHARE * sum(lengths.values()), HELD_OUT_MOST)
    # popped from the end: those that fit by their hashes, then the shortest of the others
    order = sorted(groups, key=lambda key: (lengths[key] if lengths[key] > quota else 0, key), reverse=True)
    most = max(1, len(groups) // HELD_OUT_PARTS)
    chosen: dict[str, list[int]] = {}
    for still_needed, split in zip(range(len(missing), 0, -1), missing, strict=True):
        keys: list[bytes] = []
        left = quota
        while not keys or (left > 0 and len(keys) < most and len(order) > still_needed and lengths[order[-1]] <= quota):
            keys.append(order.pop())
            left -= lengths[keys[-1]]
        chosen[split] = [row for key in keys for row in groups[key]]
    chosen["train"] = [row for key in order for row in groups[key]]
    return {split: train.select(sorted(rows)) for split, rows in chosen.items()}


def _count(dataset: Dataset) -> dict:
    """Documents, words (split at white space), characters and UTF-8 bytes of the original text, and its hash."""
    counts = {"documents": len(dataset), "words": 0, "characters": 0, "bytes": 0}
    digest = hashlib.sha256()
    for batch in dataset.iter(batch_size=100):
        for text in batch["text"]:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
            counts["words"] += len(text.split())
            counts["characters"] += len(text)
            counts["bytes"] += len(encoded)
    return counts | {"hash": digest.hexdigest()}
