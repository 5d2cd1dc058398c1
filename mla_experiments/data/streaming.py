"""Corpora too large for the disk, read a document at a time: from the hub, or from a folder of parquet files.

What is kept of such a corpus is a sample, the first documents of its stream: some of them are held out for validation
and test, the others train the tokenizer. Training reads the stream itself, from its start, and leaves out every text
that is held out, wherever it stands; so the two are disjoint also where the stream holds a text twice.
"""

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

from datasets import DatasetBuilder, IterableDataset, load_dataset_builder
from pyarrow.dataset import ParquetFragmentScanOptions

from ..errors import UserError, reason_of
from ..manifest import write_json
from .folders import others_in
from .formats import DataFile
from .reading import AS_TABLE, EMPTY, NULL, Reading
from .sources import AS_IT_STANDS, check_column, give_up_on_an_unreachable_hub, name_and_config
from .tables import column_texts, no_column, text_of
from .wikitext import HEAD, could_be_wikitext, is_title

HELD_OUT_FILE = "held-out.json"  # in the folder of the tokens: hashes of the texts that training leaves out
GROUP_CHARACTERS = 200_000  # read before they are tokenised together; bounds the memory
ROWS_AT_ONCE = 50  # of a parquet file; pyarrow reads ahead of training up to 1 GiB in which each batch counts as its
# whole row group, so that a batch of one in twenty rows leaves a twentieth of it
PARQUET = (".parquet", ".pq")  # endings, in any case
FOOTER = 1 << 16  # bytes at the end of a parquet file that tell it from others: its schema, offsets and statistics


class DocumentStream:
    """The documents of a streamed corpus in its own order, from any position; those without text are left out.

    Args:
        corpus: "hub:NAME[:CONFIG]", whose split `train` is read, or a folder of parquet files, laid out as on the hub.
        text_column: which column holds the text.
        version: what the data have to be, as an earlier stream's `source` says; None takes them as they are.
        held_out: hashes (`text_hash`) of the texts to leave out.
        say: is called with a sentence at the first row without a text.

    Raises:
        UserError: the corpus is absent, unreachable, of another version, or names files outside of itself.
    """

    def __init__(
        self,
        corpus: str,
        text_column: str,
        version: str | None = None,
        held_out: Iterable[str] = (),
        say: Callable[[str], None] | None = None,
    ):
        self.corpus, self.text_column, self.held_out = absolute(corpus), text_column, frozenset(held_out)
        self.left_out: Counter[str] = Counter()  # documents without text, by why
        self._say = say
        with self._explained("cannot be streamed ({}); check its name, the network and the files"):
            builder, self.version, self.files = opened(self.corpus, version)
            self._rows = rows_of(builder, text_column, self.corpus)
        if version not in (None, self.version):
            raise UserError(
                f"corpus={self.corpus} is not what it was when the data were prepared; bring it back, or prepare the "
                "data and train anew"
            )
        self._start = self._rows.state_dict()
        self._groups: Generator[tuple[dict, list[str]]] | None = None

    @property
    def source(self) -> dict[str, str]:
        """What is read, for manifests and for opening the same stream again: corpus, text column, version."""
        return {"corpus": self.corpus, "text_column": self.text_column, "version": self.version}

    def groups(self, state: dict | None = None) -> Iterator[tuple[dict, list[str]]]:
        """Yield some documents at a time, each time with the state before them, up to the end of the stream.

        A state is JSON and marks a place between two documents. Going on from one reads its file from the start, or
        the file before too. Only one reader of a stream is open at a time.

        Args:
            state: where to go on; None begins at the start.

        Raises:
            UserError: the stream breaks off.
        """
        self.close()
        groups = self._groups = self._read(state or self._start)
        return groups

    def close(self) -> None:
        """Stop reading; pyarrow's threads would abort a process that ends while they wait."""
        if self._groups is not None:
            self._groups.close()

    def _read(self, state: dict) -> Generator[tuple[dict, list[str]]]:
        with self._explained("could not be read on ({}); the same command tries again, training with --resume"):
            self._rows.load_state_dict(state)
            texts, size = [], 0
            for row in self._rows:
                text = self._text(row)
                if text is None or text_hash(text) in self.held_out:
                    continue
                texts.append(text)
                size += len(text)
                if size >= GROUP_CHARACTERS:
                    yield state, texts
                    texts, size, state = [], 0, self._rows.state_dict()
            if texts:
                yield state, texts

    def _text(self, row: dict) -> str | None:
        """Return the text of a row; None, counted, where it holds none."""
        if self.text_column not in row:
            raise no_column(self.text_column, self.corpus, list(row))
        text = text_of(row[self.text_column], self.text_column, self.corpus)
        if text and text.strip():
            return text
        if text is None and not self.left_out[NULL] and self._say:
            self._say(f"Note: corpus={self.corpus} has rows without a text (null), which are left out.")
        self.left_out[NULL if text is None else EMPTY] += 1
        return None

    def _name_undecodable(self) -> None:
        """Raise the error that names the file and the row of a text that is not UTF-8, where the files lie here."""
        for path in map(Path, self.files):
            if path.is_file():
                for _ in column_texts(DataFile(path, "parquet"), self.text_column):
                    pass

    @contextlib.contextmanager
    def _explained(self, sentence: str) -> Iterator[None]:
        """Turn whatever goes wrong at the other end into one sentence; libraries raise errors of many kinds there."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, UnicodeDecodeError):
                self._name_undecodable()
            raise UserError(f"corpus={self.corpus} {sentence.format(reason_of(error))}") from error


def absolute(corpus: str) -> str:
    """Return the name of a corpus such that it names the same folder wherever a later command is run."""
    name, _ = name_and_config(corpus)
    return corpus.replace(name, str(Path(name).resolve()), 1) if Path(name).is_dir() else corpus


def opened(corpus: str, version: str | None) -> tuple[DatasetBuilder, str, list[str]]:
    """Return what reads a corpus, the version of its data (the hub's commit, or a hash over files), and its files.

    Args:
        corpus: see `DocumentStream`.
        version: which commit of the hub's to read; None reads the newest.

    Raises:
        UserError: it cannot be streamed, or names files outside of itself.
    """
    name, config = name_and_config(corpus)
    root = Path(name).resolve()
    if root.is_dir():
        builder = folder_builder(name, config, root)
        files = training_files(builder, corpus, lambda file: Path(file).resolve().is_relative_to(root))
        return builder, files_version(files, corpus), files
    if not corpus.startswith("hub:"):
        raise UserError(
            f"corpus={corpus} cannot be streamed; give hub:NAME[:CONFIG] or a folder of parquet files, or leave "
            "--streaming out"
        )
    give_up_on_an_unreachable_hub()
    builder = load_dataset_builder(name, config, revision=version)
    files = training_files(builder, corpus, lambda file: file.split("::")[-1].startswith(f"hf://datasets/{name}@"))
    return builder, builder.hash, files


def folder_builder(name: str, config: str | None, root: Path) -> DatasetBuilder:
    """Return what reads a folder: as its card says, or all its parquet files where their endings are in another case.

    `datasets` itself would leave those out without a word.
    """
    tables = sorted(str(path) for path in root.rglob("*") if path.suffix.lower() in PARQUET and path.is_file())
    odd = [path for path in tables if not path.endswith(".parquet")]
    if odd and not config and not (root / "README.md").is_file():
        return load_dataset_builder("parquet", data_files={"train": tables})
    return load_dataset_builder(name, config)


def training_files(builder: DatasetBuilder, corpus: str, is_inside) -> list[str]:
    """Return the files of the training split, and refuse those outside of the corpus: its card may name any path."""
    files = list((builder.config.data_files or {}).get("train", ()))
    if not files:
        raise UserError(f"corpus={corpus} has no files of a split named train; give one that does")
    for file in files:
        if not is_inside(file):
            raise UserError(f"corpus={corpus} names {file}, which lies outside of it; only its own files are read")
    return files


def files_version(files: list[str], corpus: str) -> str:
    """Return a hash of the names, sizes and footers of parquet files; it stays when they are copied elsewhere."""
    digest = hashlib.sha256()
    for file in files:
        if Path(file).suffix.lower() not in PARQUET:
            raise UserError(f"corpus={corpus} holds {file}; of folders only parquet files are streamed")
        with open(file, "rb") as content:
            size = content.seek(0, 2)
            content.seek(max(0, size - FOOTER))
            digest.update(f"{Path(file).name}\0{size}\0".encode() + content.read())
    return digest.hexdigest()


def rows_of(builder: DatasetBuilder, text_column: str, corpus: str) -> IterableDataset:
    """Return the rows of the training split; of parquet files only the text is fetched.

    Raises:
        UserError: there is no such column, or it holds no text.
    """
    for option, value in AS_IT_STANDS.get(builder.name, {}).items():
        setattr(builder.config, option, value)
    if hasattr(builder.config, "fragment_scan_options"):
        builder.config.columns, builder.config.batch_size = [text_column], ROWS_AT_ONCE
        # what pyarrow fetches beforehand it keeps until the end of the file
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
    rows = builder.as_streaming_dataset(split="train")
    if rows.features is not None:
        check_column(rows.features, text_column, corpus)
    return rows


def first_documents(stream: DocumentStream, most_characters: int, reading: Reading) -> Iterator[str]:
    """Yield the first documents of a stream, until they hold so many characters, and close it.

    Args:
        stream: at its beginning.
        most_characters: more than this only the last of them holds.
        reading: filled in with what is decided and left out.

    Raises:
        UserError: they are the lines of WikiText, not documents.
    """
    name, _ = name_and_config(stream.corpus)
    reading.skipped |= others_in(Path(name), stream.files) if Path(name).is_dir() else {}
    size = 0
    with contextlib.closing(stream):
        documents = (text for _, texts in stream.groups() for text in texts)
        head = list(itertools.islice(documents, HEAD))
        if could_be_wikitext(head) and any(map(is_title, head)):
            raise UserError(f"corpus={stream.corpus} has a line a row, not a document; leave --streaming out")
        for text in reading.kept(itertools.chain(head, documents), "a stream", AS_TABLE):
            yield text
            size += len(text)
            if size >= most_characters:
                break
    reading.left_out += stream.left_out


def text_hash(text: str) -> str:
    """Return the hash by which held-out texts are known."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_held_out(folder: Path, texts: Iterable[str]) -> int:
    """Keep in the folder of the tokens which texts training is to leave out, and return how many."""
    hashes = sorted(set(map(text_hash, texts)))
    write_json(folder / HELD_OUT_FILE, hashes)
    return len(hashes)


def open_stream(folder: Path, source: dict[str, str]) -> DocumentStream:
    """Return the stream to train on, without the texts held out, as the folder of the tokens was prepared for it.

    Raises:
        UserError: see `DocumentStream`.
    """
    held_out = json.loads((Path(folder) / HELD_OUT_FILE).read_text(encoding="utf-8"))
    return DocumentStream(**source, held_out=held_out, say=print)
