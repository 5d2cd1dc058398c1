"""Packed tokens: documents joined by the end-of-document token and cut into rows of equal length.

Row r holds `input_ids` = tokens [rL, rL + L) and `labels` = tokens [rL + 1, rL + L + 1) of the joined stream, so that
every token but the first is predicted exactly once. What is left at the end and fills no row is the remainder.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from ..manifest import is_current, new_folder, read_manifest, read_whole
from ..next_step import Step
from .corpora import MADE_BY as CORPUS_MADE_BY
from .corpora import load_corpus, load_split
from .streaming import write_held_out
from .synthetic.prepared import prepare_rows
from .tokenizer import MADE_BY as TOKENIZER_MADE_BY
from .tokenizer import load_tokenizer

MADE_BY = Step("data/construct_dataset.py", "data tokens")
LONGEST = 2**31 - 1  # what Arrow's lists are counted in
BATCH_CHARACTERS = 2_000_000  # tokenised at once, by all cores; bounds the memory


def prepare_tokens(
    folder: Path, corpus_folder: Path, tokenizer_folder: Path, sequence_length: int = 1024, seed: int = 0
) -> dict:
    """Tokenise and pack every split, shuffle the rows of the training split, and save them memory-mapped.

    Of a streamed corpus the held-out splits alone are packed; what trains is packed while it is read. Rows of a
    synthetic corpus are drawn while training.

    Args:
        folder: where to; one `datasets` folder a split.
        corpus_folder: a prepared corpus.
        tokenizer_folder: the tokenizer trained on it.
        sequence_length: tokens in a row, L.
        seed: of the shuffle, recorded in the manifest.

    Returns:
        The manifest: for each split rows, tokens and remainder (tokens at the end that fill no row).

    Raises:
        UserError: a stage before is missing, or a split has fewer tokens than one row.
    """
    corpus = read_manifest(corpus_folder, CORPUS_MADE_BY)
    tokenizer_manifest = read_manifest(tokenizer_folder, TOKENIZER_MADE_BY)
    if "task" in corpus:
        return prepare_rows(folder, corpus, tokenizer_manifest)
    if not 1 <= sequence_length < LONGEST:
        raise UserError(f"sequence_length={sequence_length} must be at least 1 and below {LONGEST}")
    request = {
        "sequence_length": sequence_length,
        "seed": seed,
        "corpus_hash": corpus["hash"],
        "tokenizer_hash": tokenizer_manifest["hash"],
    }
    streamed = "stream" in corpus
    if streamed:
        request["stream"] = corpus["stream"]
    if is_current(folder, request):
        print(f"{folder} already holds these tokens of {corpus['corpus']}; nothing to do.")
        return read_manifest(folder, MADE_BY)
    tokenizer = load_tokenizer(tokenizer_folder)
    with new_folder(folder, request) as (scratch, manifest):
        manifest |= {
            **request,
            "corpus": corpus["corpus"],
            "vocab_size": len(tokenizer),
            "end_of_document": tokenizer.eos_token_id,
            "splits": {},
        }
        documents_of = load_corpus(corpus_folder)
        if streamed:
            del documents_of["train"]
            texts = (text for held_out in documents_of.values() for text in held_out["text"])
            manifest["texts_held_out"] = write_held_out(scratch, texts)
        for split, documents in documents_of.items():
            path = scratch / f"{split}.arrow"
            progress = tqdm(total=corpus["splits"][split]["characters"], desc=f"packing {split}",
                            unit=" characters", unit_scale=True)  # fmt: skip
            with progress:
                counts = pack(token_batches(documents, tokenizer, progress), path, sequence_length, len(tokenizer))
            if counts["rows"] == 0:
                raise UserError(
                    f"sequence_length={sequence_length} needs {sequence_length + 1} tokens, but split {split} of "
                    f"{corpus['corpus']} has {counts['tokens']}; choose a shorter --sequence-length or more text"
                )
            rows = Dataset.from_file(str(path))
            (rows.shuffle(seed=seed) if split == "train" else rows).save_to_disk(str(scratch / split))
            path.unlink()
            manifest["splits"][split] = counts
        manifest["hash"] = content_hash([load_split(scratch / split) for split in manifest["splits"]])
    return manifest


def content_hash(splits: list[Dataset]) -> str:
    """Return the SHA-256 of packed tokens in their order, whatever the files that hold them, in hexadecimal."""
    digest = hashlib.sha256()
    for rows in splits:
        for batch in rows.with_format("arrow").iter(batch_size=1000):
            digest.update(batch["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def token_batches(documents: Dataset, tokenizer: PreTrainedTokenizerFast, progress: tqdm) -> Iterator[np.ndarray]:
    """Yield the tokens of some documents at a time, the end-of-document token before the first and after each."""
    yield np.array([tokenizer.eos_token_id], dtype=np.uint32)
    for texts in text_batches(documents):
        yield joined_tokens(texts, tokenizer)
        progress.update(sum(map(len, texts)))


def joined_tokens(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return the tokens of documents one after another, the end-of-document token after each."""
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return np.concatenate([np.array([*ids, tokenizer.eos_token_id], dtype=np.uint32) for ids in encoded])


def text_batches(documents: Dataset) -> Iterator[list[str]]:
    """Yield the texts in groups of about `BATCH_CHARACTERS` characters."""
    texts, size = [], 0
    for batch in documents.iter(batch_size=20):
        for text in batch["text"]:
            texts.append(text)
            size += len(text)
            if size >= BATCH_CHARACTERS:
                yield texts
                texts, size = [], 0
    if texts:
        yield texts


def pack(batches: Iterator[np.ndarray], path: Path, sequence_length: int, vocab_size: int) -> dict[str, int]:
    """Write the joined tokens to an Arrow file as rows of `input_ids` and `labels`; return what was counted."""
    element = pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()
    features = Features(dict.fromkeys(("input_ids", "labels"), List(Value(str(element)), length=sequence_length)))
    num_tokens = num_rows = 0
    left = np.empty(0, dtype=np.uint32)  # tokens not yet written, the last label of the last row among them
    with ArrowWriter(path=str(path), features=features) as writer:
        for batch in batches:
            num_tokens += len(batch)
            left = np.concatenate([left, batch])
            rows = max(0, (len(left) - 1) // sequence_length)
            if rows == 0:
                continue
            cut = rows * sequence_length
            columns = [
                pa.FixedSizeListArray.from_arrays(pa.array(part.astype(element.to_pandas_dtype())), sequence_length)
                for part in (left[:cut], left[1 : cut + 1])
            ]
            writer.write_table(pa.table(columns, names=["input_ids", "labels"]))
            left = left[cut:]
            num_rows += rows
        if num_rows:
            writer.finalize()
    return {"rows": num_rows, "tokens": num_tokens, "remainder": num_tokens - 1 - num_rows * sequence_length}


def load_tokens(folder: Path, tokenizer_folder: Path) -> tuple[DatasetDict, dict]:
    """Return the packed splits, memory-mapped, and their manifest; of what is drawn or streamed some are not there.

    Raises:
        UserError: there are none, or another tokenizer than the one in `tokenizer_folder` made them.
    """
    manifest = read_whole(folder, MADE_BY)
    check_tokenizer(tokenizer_folder, manifest, folder)
    return DatasetDict({split: load_split(Path(folder) / split) for split in manifest["splits"]}), manifest


def load_tokenizer_of(manifest: dict, folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that made packed tokens.

    Args:
        manifest: of the tokens.
        folder: of the tokenizer; another one may have taken its place since the tokens were loaded.

    Raises:
        UserError: another one is there.
    """
    tokenizer = load_tokenizer(folder)
    check_tokenizer(folder, manifest, "the text that is trained on")
    return tokenizer


def check_tokenizer(folder: Path, manifest: dict, tokens: Path | str) -> None:
    """Refuse a folder whose tokenizer is not the one that made tokens, which are called so.

    Raises:
        UserError: it is another.
    """
    found = read_manifest(folder, TOKENIZER_MADE_BY)["hash"]
    if manifest["tokenizer_hash"] != found:
        raise UserError(
            f"{tokens} was made by tokenizer {manifest['tokenizer_hash'][:12]}, but {folder} holds {found[:12]}; pack "
            f"again with: {MADE_BY}"
        )
