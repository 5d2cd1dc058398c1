"""What a decoder costs, by arithmetic alone: parameters, floating-point operations, cache. Nothing is run.

Operations are those of matrix products, two a multiply-add, as torch's FLOP counter counts them.
"""

import torch

from ..modeling import DecoderConfig, DecoderForCausalLM
from ..modeling.attention import Attention

BYTES = 4  # of a number in the cache of a model saved in single precision: what studies count, and eval measures
BACKWARD = 2  # a backward pass computes two products for each of the forward pass


def skeleton(config: DecoderConfig) -> DecoderForCausalLM:
    """Return the model without memory for its weights."""
    with torch.device("meta"):
        return DecoderForCausalLM(config)


def layers_of(config: DecoderConfig) -> list[Attention]:
    """Return the attention of each layer, without memory for its weights."""
    return [block.self_attn for block in skeleton(config).model.layers]


def num_parameters(config: DecoderConfig) -> int:
    """Return the number of parameters, tied ones counted once."""
    return skeleton(config).num_parameters()


def forward_flops(config: DecoderConfig, num_new: int, context: int) -> int:
    """Return the FLOPs of a forward pass of `num_new` tokens that see `context` tokens each, logits of all included."""
    attention = sum(layer.flops(num_new, context) for layer in layers_of(config))
    mlp = 2 * num_new * 3 * config.hidden_size * config.intermediate_size
    head = 2 * num_new * config.hidden_size * config.vocab_size
    return attention + config.num_hidden_layers * mlp + head


def training_flops_per_token(config: DecoderConfig, sequence_length: int) -> float:
    """Return the FLOPs of forward and backward pass, per token of a sequence."""
    return (1 + BACKWARD) * forward_flops(config, sequence_length, sequence_length) / sequence_length


def cached_numbers(config: DecoderConfig, context: int) -> int:
    """Return how many numbers the cache keeps of a sequence, over all layers: in a window what the next token sees."""
    return kept_of(numbers_by_layer(config), config, context)


def numbers_by_layer(config: DecoderConfig) -> list[int]:
    """Return how many numbers each layer keeps of a token."""
    return [layer.cache_elements_per_token() for layer in layers_of(config)]


def kept_of(numbers: list[int], config: DecoderConfig, context: int) -> int:
    """Return how many numbers are kept of a sequence, given how many each layer keeps of a token."""
    windows = config.windows()
    return sum(each * min(context, (window or context + 1) - 1) for each, window in zip(numbers, windows, strict=True))


def cache_elements_per_token(config: DecoderConfig) -> int:
    """Return how many numbers the cache keeps of one token, over all layers, as long as no window is full."""
    return cached_numbers(config, 1)
