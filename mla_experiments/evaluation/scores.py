"""The scores of a run, document by document, in its `scores.json`: what comparisons of studies and runs are made of.

With caches kept in another dtype than the model's own they are in a file of that name, `scores-int8.json`.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..manifest import read_record, write_record
from .perplexity import PROTOCOL, Score

ANSWERS = "answers of drawn rows"  # the protocol of synthetic tasks


@dataclass(frozen=True)
class SplitScores:
    """Per document: nats in float64, and what they are spread over; and the hash of the texts themselves.

    Of synthetic tasks, per drawn row: nats of the answers, how many answers there are (`tokens`), how many are wrong,
    and how far the nats are above the entropy, where it is known.
    """

    text_sha256: str
    nats: np.ndarray
    tokens: np.ndarray
    words: np.ndarray | None = None
    bytes: np.ndarray | None = None
    wrong: np.ndarray | None = None
    excess: np.ndarray | None = None

    @property
    def wrong_answers(self) -> np.ndarray:
        """How many answers of each drawn row are wrong.

        Raises:
            UserError: these are scores of text.
        """
        if self.wrong is None:
            raise UserError("these are scores of text, which has no answers; score a run on a synthetic task")
        return self.wrong


def texts_hash(texts: list[str]) -> str:
    """Return a hash of documents and their boundaries."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def scores_file(folder: Path, cache_dtype: str | None) -> Path:
    """Return where the scores of a run lie, its caches kept in a dtype; None for the model's own."""
    return folder / (f"scores-{cache_dtype}.json" if cache_dtype else "scores.json")


def write_scores(folder: Path, scored: dict[str, tuple[list[str], Score]], cache_dtype: str | None = None) -> None:
    """Write the scores of a run's splits, each with the texts that were scored, in place of earlier ones."""
    splits = {
        split: {
            "text_sha256": texts_hash(texts),
            **{name: [getattr(d, name) for d in score.documents] for name in ("nats", "tokens", "words", "bytes")},
        }
        for split, (texts, score) in scored.items()
    }
    write_record(scores_file(folder, cache_dtype), {"protocol": PROTOCOL, "splits": splits})


def write_answers(folder: Path, scored: dict[str, SplitScores], cache_dtype: str | None = None) -> None:
    """Write the scores of a run on the task that it was trained on, by condition, in place of earlier ones."""
    splits = {
        name: {
            each.name: value.tolist() if isinstance(value := getattr(part, each.name), np.ndarray) else value
            for each in fields(part)
            if getattr(part, each.name) is not None
        }
        for name, part in scored.items()
    }
    write_record(scores_file(folder, cache_dtype), {"protocol": ANSWERS, "splits": splits})


def read_scores(folder: Path, cache_dtype: str | None = None) -> dict[str, SplitScores] | None:
    """Return a run's scores by split; None where there are none, or none of the protocols of today."""
    try:
        content = read_record(scores_file(folder, cache_dtype))
        if content["protocol"] not in (PROTOCOL, ANSWERS):
            return None
        return {
            split: SplitScores(part.pop("text_sha256"), **{name: np.array(values) for name, values in part.items()})
            for split, part in content["splits"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scores_of(folder: Path, cache_dtype: str | None = None) -> dict[str, SplitScores]:
    """Return a run's scores by split, where there must be some.

    Raises:
        UserError: there are none, or they are damaged.
    """
    scores = read_scores(folder, cache_dtype)
    if scores is None:
        raise UserError(
            f"{scores_file(folder, cache_dtype)} is not there or not what was written there; score the run "
            f"again, by the same `mla-experiments study FILE`, or outside of studies: mla-experiments eval {folder}"
        )
    return scores
