"""What a cache or weights in fewer bits cost a trained model: the same documents, scored as it is and so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerFast

from ..modeling import DecoderForCausalLM, set_cache_dtype, set_weight_dtype
from .perplexity import Score, score_documents
from .results import cache_bytes_per_token, find_models, held_out_texts, load_with_tokenizer, shown_name


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights."""
    return sum(held.nbytes for held in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class Storage:
    """Something of a model that can be kept in fewer bits.

    Attributes:
        name: of it.
        keep: have a model keep it in a dtype.
        size: bytes that it takes in a model, of a token where it grows with the text.
        unit: of that size.
    """

    name: str
    keep: Callable[[DecoderForCausalLM, str], None]
    size: Callable[[DecoderForCausalLM], float]
    unit: str


STORAGES = {
    "cache_dtype": Storage("cache", set_cache_dtype, cache_bytes_per_token, "cache bytes/token"),
    "weight_dtype": Storage("weights", set_weight_dtype, weight_bytes, "bytes of weights"),
}


@dataclass(frozen=True)
class ScoredTwice:
    """One model on one split.

    Attributes:
        model: its name.
        split: of the corpus.
        exact: scores of the model as it is.
        kept: scores with all that is read in fewer bits.
        exact_bytes: that it takes in the model's own dtype.
        kept_bytes: and in this one.
    """

    model: str
    split: str
    exact: Score
    kept: Score
    exact_bytes: float
    kept_bytes: float


def scored_twice(
    storage: Storage,
    dtype: str,
    models: list[str],
    corpus: str | None,
    text_column: str,
    data_dir: str,
    weights_dir: str,
) -> Iterator[ScoredTwice]:
    """Yield both scores of every model and split.

    Args:
        storage: what is kept in fewer bits.
        dtype: and in which.
        models: as those that follow, see `results.evaluate_models`.
        corpus: see there.
        text_column: see there.
        data_dir: see there.
        weights_dir: see there.

    Raises:
        UserError: no models, no text, or a model that cannot be loaded, or cannot keep it so.
    """
    folders = find_models(models, Path(weights_dir))
    _, splits = held_out_texts(corpus, text_column, Path(data_dir))
    for folder in folders:
        model, tokenizer = load_with_tokenizer(folder)
        name = shown_name(folder, Path(weights_dir))
        exact, exact_bytes = scores_by_split(model, tokenizer, splits, name), storage.size(model)
        storage.keep(model, dtype)
        said = f"{name}, {storage.name} in {dtype},"
        kept, kept_bytes = scores_by_split(model, tokenizer, splits, said), storage.size(model)
        for split in splits:
            yield ScoredTwice(name, split, exact[split], kept[split], exact_bytes, kept_bytes)


def scores_by_split(
    model: DecoderForCausalLM, tokenizer: PreTrainedTokenizerFast, splits: dict[str, list[str]], name: str
) -> dict[str, Score]:
    """Return the scores of a model, by the name that its bar shows, on the documents of each split."""
    return {
        split: score_documents(model, tokenizer, texts, description=f"{name} on {split}")
        for split, texts in splits.items()
    }
