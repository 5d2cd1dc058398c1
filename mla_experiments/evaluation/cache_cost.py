"""What a cache in fewer bits costs a trained model: the same documents, scored without a cache and through that one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..modeling import set_cache_dtype
from .perplexity import Score, score_documents
from .results import cache_bytes_per_token, find_models, held_out_texts, load_with_tokenizer, shown_name


@dataclass(frozen=True)
class ScoredTwice:
    """One model on one split.

    Attributes:
        model: its name.
        split: of the corpus.
        exact: scores without a cache.
        kept: scores with every key and value read from the cache.
        exact_bytes: that a token takes in a cache in the model's own dtype.
        kept_bytes: and in this one.
    """

    model: str
    split: str
    exact: Score
    kept: Score
    exact_bytes: float
    kept_bytes: float


def scored_twice(
    dtype: str, models: list[str], corpus: str | None, text_column: str, data_dir: str, weights_dir: str
) -> Iterator[ScoredTwice]:
    """Yield both scores of every model and split.

    Args:
        dtype: of the cache, see `modeling.set_cache_dtype`.
        models: as those that follow, see `results.evaluate_models`.
        corpus: see there.
        text_column: see there.
        data_dir: see there.
        weights_dir: see there.

    Raises:
        UserError: no models, no text, or a model that cannot be loaded, or cannot keep such a cache.
    """
    folders = find_models(models, Path(weights_dir))
    _, splits = held_out_texts(corpus, text_column, Path(data_dir))
    for folder in folders:
        model, tokenizer = load_with_tokenizer(folder)
        name = shown_name(folder, Path(weights_dir))
        for split, texts in splits.items():
            scores, sizes = [], []
            for kept in (None, dtype):
                set_cache_dtype(model, kept)
                said = f"{name} on {split}{f', cache in {kept}' if kept else ''}"
                scores.append(score_documents(model, tokenizer, texts, description=said))
                sizes.append(cache_bytes_per_token(model))
            yield ScoredTwice(name, split, scores[0], scores[1], sizes[0], sizes[1])
