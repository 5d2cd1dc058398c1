"""Tokenising and packing: characters per second, and the memory that a larger corpus takes."""

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ..data import prepare_corpus, prepare_tokenizer, prepare_tokens
from .measure import PeakMemory, flag

FIGURE = None


@dataclass
class Arguments:
    """Seconds and memory of preparing synthetic corpora."""

    characters: list[int] = flag([3_000_000], "sizes of the corpora")
    sequence_length: int = flag(1024, "tokens in a packed row")


def measure(given: Arguments) -> list[dict]:
    """Return a row per corpus."""
    return [measure_packing(characters, given.sequence_length) for characters in given.characters]


def synthetic_text(path: Path, characters: int, vocabulary: int = 30_000) -> None:
    """Write a text of random words with the lengths and frequencies of a natural language (Zipf's law)."""
    chosen = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(chosen.choices(letters, range(22, 0, -1), k=chosen.randint(2, 9))) for _ in range(vocabulary)]
    weights = [1 / rank for rank in range(1, vocabulary + 1)]
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < characters:
            paragraph = " ".join(chosen.choices(words, weights, k=2000)) + ".\n\n"
            file.write(paragraph)
            written += len(paragraph)


def measure_packing(characters: int, sequence_length: int) -> dict:
    """Prepare a synthetic corpus of so many characters and return seconds and peak memory of each stage.

    Memory is what the process itself holds (RssAnon); pages of memory-mapped files belong to the system's cache,
    which it takes back when it needs them.
    """
    measured: dict[str, float] = {"characters": characters}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        synthetic_text(folder / "text.txt", characters)
        stages = {
            "corpus": lambda: prepare_corpus(folder / "corpus", str(folder / "text.txt")),
            "tokenizer": lambda: prepare_tokenizer(folder / "tokenizer", folder / "corpus"),
            "tokens": lambda: prepare_tokens(
                folder / "tokens", folder / "corpus", folder / "tokenizer", sequence_length
            ),
        }
        for name, stage in stages.items():
            with PeakMemory() as memory:
                begun = time.perf_counter()
                stage()
                measured[f"{name}, s"] = time.perf_counter() - begun
            measured[f"{name}, MiB"] = memory.peak / 2**20
    return measured
