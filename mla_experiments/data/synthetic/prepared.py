"""A synthetic corpus on the disk: its description and its vocabulary, in the folders where other corpora have more."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ...manifest import file_hash, is_current, new_folder, read_manifest
from . import task_of
from .task import END, Task

END_WORD = "<|endoftext|>"
VERSION = 1  # raised where the same description draws other rows than before


def prepare_task(folder: Path, corpus: str) -> dict:
    """Write the description of a synthetic corpus as a corpus folder, and return its manifest.

    Raises:
        UserError: see `task_of`.
    """
    task = task_of(corpus)
    request = {"corpus": task.corpus, "task": described(task)}
    if is_current(folder, request):
        print(f"{folder} already holds {task.corpus}; nothing to do.")
        return read_manifest(folder, "")
    with new_folder(folder, request) as (_, manifest):
        manifest |= {"corpus": task.corpus, "task": described(task), "splits": {}, "hash": digest(task)}
    return manifest


def prepare_vocabulary(folder: Path, corpus: dict) -> dict:
    """Write the tokenizer of a synthetic corpus, a word for each of its symbols.

    Args:
        folder: where to.
        corpus: the manifest of the corpus.
    """
    task = task_of(corpus["corpus"])
    request = {"symbols": task.num_symbols, "corpus_hash": corpus["hash"]}
    if is_current(folder, request):
        return read_manifest(folder, "")
    with new_folder(folder, request) as (scratch, manifest):
        vocabulary(task.num_symbols).save_pretrained(scratch)
        manifest |= {
            "corpus": corpus["corpus"],
            "vocab_size": task.num_symbols,
            "hash": file_hash(scratch / "tokenizer.json"),
        }
    return manifest


def prepare_rows(folder: Path, corpus: dict, tokenizer: dict) -> dict:
    """Write what training asks of packed tokens: nothing is stored, rows are drawn.

    Args:
        folder: where to.
        corpus: the manifest of the corpus.
        tokenizer: that of its tokenizer.
    """
    request = {"task": corpus["task"], "corpus_hash": corpus["hash"], "tokenizer_hash": tokenizer["hash"]}
    if is_current(folder, request):
        return read_manifest(folder, "")
    with new_folder(folder, request) as (_, manifest):
        manifest |= {
            **request,
            "corpus": corpus["corpus"],
            "vocab_size": tokenizer["vocab_size"],
            "end_of_document": END,
            "splits": {},
            "hash": corpus["hash"],
        }
    return manifest


def described(task: Task) -> dict:
    """Return all that determines what a task draws from a seed."""
    return {"name": task.name, "version": VERSION, **asdict(task)}


def digest(task: Task) -> str:
    """Return the hash of a description."""
    return hashlib.sha256(json.dumps(described(task), sort_keys=True).encode()).hexdigest()


def vocabulary(num_symbols: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words `s1`, `s2`, ... with spaces between, and the end."""
    words = {END_WORD: END} | {f"s{number}": number for number in range(1, num_symbols)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_WORD, bos_token=END_WORD, pad_token=END_WORD,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
