"""Text to calibrate on and text to measure on: read, cut into windows, and never the same.

A conversion that has seen the text it is judged by judges itself. So no run of `SHINGLE` words of the one may stand in
the other, whatever their files are called; both are known by their hashes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from ..data import Reading, beginning_of_text
from ..data.sources import open_corpus
from ..errors import UserError
from ..evaluation.perplexity import tokens_of
from ..evaluation.scores import texts_hash

SHINGLE = 20  # words
HELD_OUT_EVERY = 4  # documents of a corpus that serves both
Run = tuple[str, ...]  # of words


@dataclass(frozen=True)
class Texts:
    """Documents of a corpus; `name` is how it was asked for."""

    name: str
    documents: list[str]

    @property
    def sha256(self) -> str:
        """Of the documents and their boundaries."""
        return texts_hash(self.documents)


def read_texts(corpus: str, held_out_corpus: str | None, text_column: str) -> tuple[Texts, Texts]:
    """Return text to calibrate on and text to measure on.

    Where one corpus serves both, every fourth of its documents is held out, and what shares a passage with one of those
    is left out.

    Args:
        corpus: as the command `data` takes it.
        held_out_corpus: another, or None for the same.
        text_column: of tables.

    Raises:
        UserError: it cannot be read, is too short to be parted, or the two share a passage.
    """
    documents = _documents(corpus, text_column)
    if held_out_corpus is None:
        held_out = documents[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        rest = [text for number, text in enumerate(documents) if number % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
        seen = sampled_runs(held_out)
        kept = [text for text in rest if shared_run(text, seen) is None]
        if not held_out or not kept:
            alone = "without passages of others " if held_out else ""
            raise UserError(
                f"corpus={corpus} has {len(documents)} documents, too few {alone}to hold some out; give another as "
                "--held_out"
            )
        if len(kept) < len(rest):
            print(f"Left out of calibration for passages that held-out documents have too: {len(rest) - len(kept)}.")
    else:
        kept, held_out = documents, _documents(held_out_corpus, text_column)
        check_apart(kept, held_out, corpus, held_out_corpus)
    return Texts(corpus, kept), Texts(held_out_corpus or f"{corpus} (every {HELD_OUT_EVERY}th document)", held_out)


def _documents(corpus: str, text_column: str) -> list[str]:
    reading = Reading(corpus)
    texts = list(itertools.chain.from_iterable(open_corpus(corpus, text_column, reading).values()))
    print(*reading.sentences(), sep="\n")
    return texts


def check_apart(first: list[str], second: list[str], name: str, other: str) -> None:
    """Refuse texts that share a run of words.

    Raises:
        UserError: they do, with the first such run.
    """
    seen = sampled_runs(second)
    for text in first:
        if run := shared_run(text, seen):
            raise UserError(
                f"corpus={name} and held_out={other} share a passage ({' '.join(run[:8])!a} ...); what is measured "
                "on text that was calibrated on means nothing: give another text"
            )


def sampled_runs(texts: list[str]) -> set[Run]:
    """Return runs of words that no long passage is without: one after another in each text."""
    return {run for text in texts for run in itertools.islice(runs_of(text), 0, None, SHINGLE)}


def shared_run(text: str, seen: set[Run]) -> Run | None:
    """Return the first run of a text that has been seen."""
    return next((run for run in runs_of(text) if run in seen), None)


def runs_of(text: str) -> Iterator[Run]:
    """Yield every run of `SHINGLE` words."""
    words = text.split()
    for start in range(len(words) - SHINGLE + 1):
        yield tuple(words[start : start + SHINGLE])


def windows_of(texts: Texts, tokenizer: PreTrainedTokenizerFast, tokens: int, length: int, width: int) -> torch.Tensor:
    """Return windows `[N, T]` of calibration text, spread evenly over it, each after the token that begins a text.

    Args:
        texts: to calibrate on.
        tokenizer: the model's own.
        tokens: how many in all, N · T.
        length: T.
        width: of the model, whose inputs span no more dimensions than there are tokens.

    Raises:
        UserError: fewer tokens than the width, or than were asked for.
    """
    if tokens < width:
        raise UserError(
            f"calibration_tokens={tokens} are fewer than the model's width {width}, too few for their covariance; "
            f"give at least {width}, better ten times as many"
        )
    count, each = max(1, tokens // length), min(length, tokens) - 1
    stream = list(itertools.chain.from_iterable(tokens_of([t for t in texts.documents if t.strip()], tokenizer)))
    if len(stream) < count * each:
        raise UserError(
            f"corpus={texts.name} has {len(stream):,} tokens, fewer than calibration_tokens={tokens:,}; give a longer "
            "text, or lower it"
        )
    step = (len(stream) - each) // max(1, count - 1) if count > 1 else 0
    begin = beginning_of_text(tokenizer)
    return torch.tensor([[begin, *stream[k * step : k * step + each]] for k in range(count)])


def rows_of(texts: Texts, tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """Return all of a text in rows `[N, length]`, one after another.

    Raises:
        UserError: it does not fill one.
    """
    stream = list(itertools.chain.from_iterable(tokens_of([t for t in texts.documents if t.strip()], tokenizer)))
    count = len(stream) // length
    if not count:
        raise UserError(f"corpus={texts.name} has {len(stream)} tokens, fewer than one row of {length}; give more text")
    return torch.tensor(stream[: count * length]).view(count, length)


def beginnings(texts: Texts, tokenizer: PreTrainedTokenizerFast, tokens: int, length: int) -> list[str]:
    """Return the beginnings of documents, each of at most `length` tokens, `tokens` of them in all at most."""
    cut = []
    for text in texts.documents:
        if tokens < 2:
            break
        ids = tokens_of([text], tokenizer)[0][: min(length, tokens)] if text.strip() else []
        if ids:
            cut.append(str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)))
            tokens -= len(ids)
    return cut
