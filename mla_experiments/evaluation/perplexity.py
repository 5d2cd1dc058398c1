"""Perplexity of held-out documents, each scored alone.

The protocol is lm-evaluation-harness's rolling log-likelihood: before the first token stands the one that begins a
text (`data.beginning_of_text`), and a document longer than the model's context is cut into windows whose tokens are
predicted once each. A window begins with the last token of the one before; the last window, which has fewer tokens to
predict, begins earlier, so that it is as long as the others. Losses are summed in float64.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..data import beginning_of_text
from ..errors import UserError
from ..modeling import DecoderForCausalLM

IGNORED = -100  # label of a position that is padding, or predicted by another window
PROTOCOL = "rolling windows, the last one full"  # scores of another protocol are not comparable


@dataclass(frozen=True)
class DocumentScore:
    """Negative log-likelihood of one document in nats, and what it is spread over."""

    nats: float
    tokens: int
    words: int
    bytes: int


@dataclass(frozen=True)
class Score:
    """Sums over documents.

    Words are counted in the original text, split at white space, and bytes in its UTF-8 form, so that perplexity per
    word and bits per byte compare models of different tokenizers.
    """

    documents: list[DocumentScore]

    def total(self, name: str) -> float:
        """Return the sum of a field over all documents."""
        return math.fsum(getattr(document, name) for document in self.documents)

    @property
    def perplexity_per_token(self) -> float:
        """exp(nats / tokens)."""
        return _exp(self.total("nats") / self.total("tokens"))

    @property
    def perplexity_per_word(self) -> float:
        """exp(nats / words), WikiText's convention."""
        return _exp(self.total("nats") / self.total("words"))

    @property
    def bits_per_byte(self) -> float:
        """Nats / bytes / ln 2."""
        return self.total("nats") / self.total("bytes") / math.log(2)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def score_documents(
    model: DecoderForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    batch_tokens: int = 4096,
    description: str = "evaluating",
) -> Score:
    """Score documents one by one.

    Args:
        model: on the device on which to compute.
        tokenizer: the model's own.
        texts: the original documents; those without any word are left out.
        batch_tokens: tokens in a forward pass.
        description: beside the progress bar.

    Raises:
        UserError: the texts hold no word, or the tokenizer makes nothing of one, or has nothing to begin a text with.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError("corpus holds no text to evaluate on; give one that does")
    encoded = tokens_of(texts, tokenizer)
    nats = [0.0] * len(texts)
    all_windows = [
        (document, inputs, labels)
        for document, tokens in enumerate(encoded)
        for inputs, labels in windows(tokens, beginning_of_text(tokenizer), model.config.max_position_embeddings)
    ]
    all_windows.sort(key=lambda window: len(window[1]), reverse=True)  # equal lengths together: little padding
    with tqdm(total=sum(map(len, encoded)), desc=description, unit=" tokens", unit_scale=True, leave=False) as progress:
        for batch in batches(all_windows, batch_tokens):
            for (document, _, labels), loss in zip(batch, window_losses(model, batch), strict=True):
                nats[document] += loss
                progress.update(len(labels) - labels.count(IGNORED))
    counted = zip(nats, encoded, texts, strict=True)
    return Score([DocumentScore(n, len(ids), len(text.split()), len(text.encode())) for n, ids, text in counted])


def tokens_of(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return the tokens of documents; what reads like a special token in them is text.

    Raises:
        UserError: a document has none, so that its bytes would cost nothing.
    """
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, split_special_tokens=True)
    for text, tokens in zip(texts, encoded["input_ids"], strict=True):
        if not tokens:
            raise UserError(
                f"the tokenizer makes no token of the document {text[:40]!a}, which so cannot be scored; leave that out"
            )
    return encoded["input_ids"]


def windows(tokens: list[int], prefix: int, context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield inputs and labels, at most `context` each, so that every token is a label exactly once.

    Labels are `IGNORED` where the last window looks back at tokens that another has predicted.
    """
    shifted = [prefix, *tokens[:-1]]
    for start in range(0, len(tokens), context):
        end = min(start + context, len(tokens))
        begin = max(0, end - context)
        yield shifted[begin:end], [IGNORED] * (start - begin) + tokens[start:end]


def batches(all_windows: list, batch_tokens: int) -> Iterator[list]:
    """Cut windows, longest first, into batches of at most `batch_tokens`, padding counted."""
    start = 0
    while start < len(all_windows):
        size = max(1, batch_tokens // len(all_windows[start][1]))
        yield all_windows[start : start + size]
        start += size


@torch.inference_mode()
def window_losses(model: DecoderForCausalLM, batch: list) -> list[float]:
    """Return the summed loss of every window in nats; windows are padded at the end, where nothing looks.

    A model that was told to keep caches in fewer bits reads all keys and values as decoding would, see
    `modeling.set_cache_dtype`.
    """
    longest = len(batch[0][1])
    inputs = torch.tensor([inputs + [0] * (longest - len(inputs)) for _, inputs, _ in batch], device=model.device)
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for *_, labels in batch], device=model.device)
    through_cache = model.model.cache_dtype is not None
    logits = model(inputs, use_cache=through_cache).logits  # [B, T, vocabulary]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape).double().sum(dim=1).tolist()
