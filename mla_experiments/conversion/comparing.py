"""How far converted models are from the original on held-out text: nats, and KL divergence, document by document.

The protocol is that of `evaluation.perplexity`. KL(original ‖ converted) of next-token probabilities is summed over the
same positions: what the conversion changed, whether or not the text itself has become less likely.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..data import beginning_of_text
from ..evaluation.perplexity import IGNORED, batches, tokens_of, windows
from ..modeling import DecoderForCausalLM


@dataclass(frozen=True)
class Distance:
    """Per document: nats and divergence from the original in nats, and what they are spread over."""

    nats: np.ndarray
    divergence: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    @property
    def perplexity(self) -> float:
        """Per token."""
        return float(np.exp(self.nats.sum() / self.tokens.sum()))

    @property
    def bits_per_byte(self) -> float:
        """Of all documents."""
        return float(self.nats.sum() / self.bytes.sum() / np.log(2))

    @property
    def divergence_per_token(self) -> float:
        """In nats."""
        return float(self.divergence.sum() / self.tokens.sum())


@torch.inference_mode()
def distances(
    original: DecoderForCausalLM,
    converted: dict[str, DecoderForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    length: int,
) -> dict[str, Distance]:
    """Return the scores of the original, under "original", and of converted models on documents.

    Args:
        original: on the device on which to compute.
        converted: by name; each position's logits of all are at hand at once, of one window.
        tokenizer: the model's own.
        texts: documents.
        length: of windows, in tokens.
    """
    encoded = tokens_of(texts, tokenizer)
    begin = beginning_of_text(tokenizer)
    cut = [(number, *window) for number, ids in enumerate(encoded) for window in windows(ids, begin, length)]
    cut.sort(key=lambda window: len(window[1]), reverse=True)
    names = ("original", *converted)
    nats, divergence = ({name: np.zeros(len(texts)) for name in names} for _ in range(2))
    for batch in tqdm(list(batches(cut, length)), "measuring on held-out text", leave=False):
        documents = [window[0] for window in batch]
        inputs, labels = padded(batch)
        counts = labels != IGNORED
        truth = original(inputs, use_cache=False).logits.float().log_softmax(-1)  # [B, T, vocabulary]
        for name in names:
            made = (
                truth if name == "original" else converted[name](inputs, use_cache=False).logits.float().log_softmax(-1)
            )
            lost = F.nll_loss(made.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").double().sum(1)
            np.add.at(nats[name], documents, lost.numpy())
            if made is not truth:
                apart = F.kl_div(made, truth, log_target=True, reduction="none").sum(-1).double()
                np.add.at(divergence[name], documents, (apart * counts).sum(1).numpy())
    sizes = np.array([len(ids) for ids in encoded]), np.array([len(text.encode()) for text in texts])
    return {name: Distance(nats[name], divergence[name], *sizes) for name in names}


def padded(batch: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels `[B, T]` of windows, the longest first, padded at the end."""
    longest = len(batch[0][1])
    inputs = torch.tensor([inputs + [0] * (longest - len(inputs)) for _, inputs, _ in batch])
    return inputs, torch.tensor([labels + [IGNORED] * (longest - len(labels)) for *_, labels in batch])
