"""The contract that every attention mechanism keeps.

A mechanism is one class in one file. It states its hyper-parameters (`resolve`), its arithmetic (`forward`), and
what it costs (`cache_elements_per_token`, `flops`). Training, generation, evaluation, benchmarks and the contract
tests work for it because it stands in the registry.
"""

import inspect
import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from ...errors import UserError

Rotation = tuple[torch.Tensor, torch.Tensor] | None  # cosines and sines, each [B or 1, T, rotary_dim / 2]


class Attention(nn.Module, ABC):
    """Causal self-attention of one decoder layer.

    Args:
        hidden_size: width of the decoder, D.
        num_attention_heads: query heads, H.
        layer_idx: which layer of the cache this one reads and writes.
        rotary: whether positions enter by RoPE; without it the attention knows no positions.
        rope_interleave: layout of rotary pairs, see `rope.rotate`.
        rope_parameters: how the rotary angles are made, see `rope.RotaryEmbedding`; some scale the scores too.
        options: the mechanism's own hyper-parameters, see its `resolve`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        *,
        layer_idx: int = 0,
        rotary: bool = True,
        rope_interleave: bool = False,
        rope_parameters: dict | None = None,
        **options: int | None,
    ):
        super().__init__()
        self.hidden_size = hidden_size
        self.num_heads = num_attention_heads
        self.layer_idx = layer_idx
        self.rotary = rotary
        self.rope_interleave = rope_interleave
        self.rope_parameters = rope_parameters
        check_options(options)
        for name, value in self.resolve(hidden_size, num_attention_heads, rotary=rotary, **options).items():
            setattr(self, name, value)

    @classmethod
    @abstractmethod
    def resolve(
        cls, hidden_size: int, num_attention_heads: int, *, rotary: bool = True, **options: Any
    ) -> dict[str, int | None]:
        """Return the mechanism's own hyper-parameters, complete: what is not given derives from the size.

        The keyword arguments of an implementation are the options that the mechanism knows.

        Raises:
            UserError: a value that cannot work, with its field.
        """

    @classmethod
    def option_names(cls) -> set[str]:
        """Return the names of the mechanism's own hyper-parameters: the keyword arguments of its `resolve`."""
        return set(inspect.signature(cls.resolve).parameters) - {"hidden_size", "num_attention_heads", "rotary"}

    @classmethod
    @abstractmethod
    def rotary_dim(cls, options: dict[str, int | None]) -> int:
        """Return how many dimensions of a key RoPE turns, given resolved options."""

    @abstractmethod
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Mix each position with those before it.

        Args:
            hidden_states: `[B, T, D]`.
            position_embeddings: cosines and sines, each `[B or 1, T, rotary_dim / 2]`; None without RoPE.
            attention_mask: see `kernels.attend`.
            past_key_values: a transformers cache, read and extended by T tokens at `layer_idx`.

        Returns:
            `[B, T, D]`.
        """

    @abstractmethod
    def cache_elements_per_token(self) -> int:
        """Return how many numbers this layer keeps in the cache for one token of one sequence."""

    @abstractmethod
    def flops(self, num_tokens: int, context: int) -> int:
        """Return the matrix-multiplication FLOPs of one forward pass of this layer.

        Two per multiply-add; every one of `num_tokens` new tokens is scored against all `context` tokens (itself
        and the cached ones included), which is what is computed where causality is a mask. Norms, softmax and
        rotation are not counted, as in torch's FLOP counter.
        """

    def cache(
        self, past_key_values: Cache | None, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to this layer's cache, where there is one, and return all that is kept: `[B, G, S, ...]`.

        Raises:
            UserError: the cache holds tensors of another shape or dtype.
        """
        if past_key_values is None:
            return key, value
        layers = past_key_values.layers
        held = layers[self.layer_idx] if self.layer_idx < len(layers) else None
        compiling = torch.compiler.is_compiling()  # a static cache's length is a tensor: asking would break the graph
        if held is not None and held.is_initialized and not compiling and held.get_seq_length() > 0:
            for name, new, old in (("keys", key, held.keys), ("values", value, held.values)):
                require(
                    new.shape[:2] + new.shape[3:] == old.shape[:2] + old.shape[3:] and new.dtype == old.dtype,
                    f"past_key_values holds {name} of shape {tuple(old.shape)} and {old.dtype}, but this model makes "
                    f"{tuple(new.shape)} and {new.dtype}; pass a cache that this model and batch have filled",
                )
        return past_key_values.update(key, value, self.layer_idx)


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition`."""
    if not condition:
        raise UserError(message)


def require_whole(name: str, value: object) -> None:
    """Raise `UserError` unless `value` is a whole number of at least 1."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= 1, f"{name}={value!r} must be a positive integer.")


def require_number(name: str, value: object, above: float = 0) -> None:
    """Raise `UserError` unless `value` is a finite number greater than `above`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    require(number and above < value <= sys.float_info.max, f"{name}={value!r} must be a number above {above}.")


def check_options(options: object) -> None:
    """Raise `UserError` unless `options` is a dictionary of whole numbers, or None for what derives from the size."""
    require(isinstance(options, dict), f"attention_options={options!r} must be a dictionary.")
    for name, value in options.items():
        require(isinstance(name, str), f"attention_options has {name!r}, which is no name of an option.")
        if value is not None:
            require(isinstance(value, int) and not isinstance(value, bool), f"{name}={value!r} must be an integer.")


def head_width(hidden_size: int, num_attention_heads: int) -> int:
    """Return hidden_size / num_attention_heads, refusing heads that do not divide the width."""
    require(
        num_attention_heads >= 1 and hidden_size % num_attention_heads == 0,
        f"num_attention_heads={num_attention_heads} does not divide hidden_size={hidden_size}; "
        "choose a divisor of the width.",
    )
    return hidden_size // num_attention_heads


def split_heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """`[B, T, H·D]` to `[B, H, T, D]`, D = width."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """`[B, H, T, D]` to `[B, T, H·D]`."""
    return x.transpose(1, 2).flatten(2)
