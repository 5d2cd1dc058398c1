"""What the parts of a decoding step take on this CPU: calls, matrix products of few rows, the core of attention.

Each is timed over as much memory as no processor cache holds, so that it reads what a whole model would make it read.
From two contexts follow all others, from one layer the model: `mla-experiments plan MODEL --hardware this`.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import DynamicCache

from ..kernels import project
from ..modeling import DecoderConfig, DecoderForCausalLM
from ..modeling.attention import Attention
from ..modeling.attention.hybrid import names_in
from ..modeling.cache import growing
from .costs import layers_of
from .decode import decode_step, tensors_of
from .measure import interleaved

UNCACHED = 1 << 29  # bytes; no processor cache is as large
CONTEXTS = (2048, 8192)  # tokens
ROUNDS = 5


@dataclass(frozen=True)
class Parts:
    """Seconds of a decoding step for a batch size: per weight that is read, per layer and its tokens of context.

    Where layers differ, those of a layer are their mean.
    `per_step` and `per_layer` are what calling costs; no arithmetic makes up for it in small models.
    """

    per_step: float
    per_weight: float
    per_layer: float
    per_layer_and_token: float

    def step(self, weights: int, num_layers: int, context: int) -> float:
        """Return the seconds of a step of all layers, each weight read once."""
        return (
            self.per_step
            + weights * self.per_weight
            + num_layers * (self.per_layer + context * self.per_layer_and_token)
        )


def measure_parts(config: DecoderConfig, batch: int) -> Parts:
    """Measure the parts of a model's decoding step, `batch` sequences together, in single precision."""
    layers = layers_of(config)
    one_of_each = {type(layer): layer.to_empty(device="cpu") for layer in layers}
    for layer in one_of_each.values():
        layer.layer_idx = 0  # of a cache of its own
        for parameter in layer.parameters():  # as memory comes it may hold numbers that are slow to multiply
            nn.init.normal_(parameter, std=0.02)
    per_step, per_layer = calling_seconds(config.attention)
    per_weight = seconds_per_weight(config.hidden_size, config.intermediate_size, batch)
    per_token = {kind: seconds_per_token(layer, batch) for kind, layer in one_of_each.items()}
    return Parts(per_step, per_weight, per_layer, statistics.fmean(per_token[type(layer)] for layer in layers))


def calling_seconds(attention: str) -> tuple[float, float]:
    """Measure a model in which there is next to nothing to compute: seconds of a step, and of a layer on average."""
    few = 2 * len(names_in(attention))
    many = 3 * few
    steps = {}
    for num_layers in (few, many):
        config = DecoderConfig(
            vocab_size=64, hidden_size=64, num_attention_heads=4, num_hidden_layers=num_layers, attention=attention
        )
        steps[num_layers], _ = decode_step(DecoderForCausalLM(config), batch=1, context=16)
    times = {number: statistics.median(seconds) for number, seconds in interleaved(steps, rounds=20).items()}
    per_layer = (times[many] - times[few]) / (many - few)
    return max(0.0, times[few] - few * per_layer), per_layer


@torch.inference_mode()
def seconds_per_weight(in_features: int, out_features: int, batch: int) -> float:
    """Measure the products of `batch` rows with matrices of this shape, per number of theirs."""
    size = in_features * out_features
    layers = [nn.Linear(in_features, out_features, bias=False) for _ in range(math.ceil(UNCACHED / 4 / size))]
    rows = torch.randn(batch, 1, in_features)
    return _median([partial(project, layer, rows) for layer in layers]) / size


@torch.inference_mode()
def seconds_per_token(attention: Attention, batch: int) -> float:
    """Measure what a token of context adds to a decoding step of one layer, whatever its mechanism keeps of it.

    All else of the layer is the same in both contexts, so that the difference is the core's alone.
    """
    times = []
    for context in CONTEXTS:
        cached_bytes = 4 * batch * context * attention.cache_elements_per_token()
        steps = [_step(attention, batch, context) for _ in range(math.ceil(UNCACHED / cached_bytes))]
        times.append(_median(steps))
    return max(0.0, (times[1] - times[0]) / (CONTEXTS[1] - CONTEXTS[0]))


def _step(attention: Attention, batch: int, context: int) -> Callable[[], None]:
    """A decoding step of a layer from a cache of its own."""
    half = attention.rotary_dim(attention.resolved()) // 2
    new, of_all = ((torch.randn(1, length, half),) * 2 for length in (1, context + 1))
    tables = (new + of_all if attention.turns_when_read else new) if attention.rotary else None
    rows, probed, cache = torch.randn(batch, 1, attention.hidden_size), growing(DynamicCache()), growing(DynamicCache())
    attention(rows, tables, None, probed)
    (one_token,) = tensors_of(probed)
    keys, values = (torch.randn(*part.shape[:2], context, part.shape[3]) for part in one_token)
    cache.update(keys, values, 0)

    def step() -> None:
        attention(rows, tables, None, cache)
        cache.crop(-1)

    return step


def _median(tasks: list) -> float:
    """The median time of a task, all of them one after another so that each finds its memory uncached."""
    seconds = interleaved(dict(enumerate(tasks)), ROUNDS, warmup=1)
    return statistics.median(second for times in seconds.values() for second in times)
