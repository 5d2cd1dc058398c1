"""How far a converted model is from the original on held-out text: nats, and KL divergence, document by document.

The protocol is that of `evaluation.perplexity`. KL(original ‖ converted) of next-token probabilities is summed over the
same positions: what the conversion changed, whether or not the text itself has become less likely. The original passes
once; its last hidden states are kept, from which its probabilities are made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..data import beginning_of_text
from ..evaluation.measures import BITS, ratio
from ..evaluation.perplexity import IGNORED, tokens_of, windows
from ..evaluation.recall import share_right
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
        return float(np.exp(ratio(self.nats, self.tokens)))

    @property
    def bits_per_byte(self) -> float:
        """Of all documents."""
        return float(BITS.scale * ratio(self.nats, self.bytes))

    @property
    def divergence_per_token(self) -> float:
        """In nats."""
        return float(ratio(self.divergence, self.tokens))


class HeldOut:
    """Held-out documents, and what the original makes of them.

    Args:
        original: the model before conversion; what is measured must be on its device.
        tokenizer: its own.
        texts: documents.
        length: of windows, in tokens.
        probes: names of the tasks that models are asked too, see `evaluation.recall.probe`.
    """

    @torch.inference_mode()
    def __init__(
        self,
        original: DecoderForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        texts: list[str],
        length: int,
        probes: Sequence[str] = (),
    ):
        self.tokenizer, self.probes = tokenizer, probes
        self.recall_of_original = self.recall(original)
        encoded, begin = tokens_of(texts, tokenizer), beginning_of_text(tokenizer)
        place = original.device
        self.windows = [
            (number, torch.tensor([inputs], device=place), torch.tensor(labels, device=place))
            for number, ids in enumerate(encoded)
            for inputs, labels in windows(ids, begin, length)
        ]
        self.tokens = np.array([len(ids) for ids in encoded])
        self.bytes = np.array([len(text.encode()) for text in texts])
        self.head = original.lm_head
        told = tqdm(self.windows, "measuring the original on held-out text", leave=False)
        self.states = [original.model(inputs, use_cache=False).last_hidden_state for _, inputs, _ in told]
        self.original = self.distance(None)

    @torch.inference_mode()
    def distance(self, model: DecoderForCausalLM | None) -> Distance:
        """Return the scores of a converted model, or with None of the original itself."""
        nats, divergence = np.zeros(len(self.tokens)), np.zeros(len(self.tokens))
        told = tqdm(self.windows, "measuring on held-out text", leave=False, disable=model is None)
        for (number, inputs, labels), state in zip(told, self.states, strict=True):
            counts = labels != IGNORED
            truth = log_probabilities(self.head(state)[0, counts])  # [tokens, vocabulary]
            made = truth if model is None else log_probabilities(model(inputs, use_cache=False).logits[0, counts])
            nats[number] += float(F.nll_loss(made, labels[counts], reduction="none").double().sum())
            if model is not None:
                apart = F.kl_div(made, truth, log_target=True, reduction="none").sum(-1)
                divergence[number] += float(apart.double().sum())
        return Distance(nats, divergence, self.tokens, self.bytes)

    def recall(self, model: DecoderForCausalLM) -> dict[str, float]:
        """Return which share of the answers of each probe a model gets right."""
        return {name: share_right(model, self.tokenizer, name) for name in self.probes}


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return those of logits `[..., vocabulary]`, in single precision."""
    return logits.float().log_softmax(-1)
