"""The contract that every attention mechanism keeps.

A mechanism is one class in one file. It states what it is (`description`, `equation`), its hyper-parameters
(`resolve`), its arithmetic (`forward`), and what it costs (`cache_parts`, `flops`). Whoever must know more asks it, so
that no other file names it; the contract tests (`mla_experiments.testing.check_attention`) hold it to what it states.
"""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache

from ..cache_name import either_name
from .checks import COMMON, check_common, check_options
from .common import CommonOptions
from .remember import Kept, remember
from .rope import Rotation

Option = int | float | bool | str | None
Options = dict[str, Any]  # complete: of which type each is says the mechanism's own `resolve`


class Attention(CommonOptions, nn.Module, ABC):
    """Causal self-attention of one decoder layer.

    Args:
        hidden_size: width of the decoder, D.
        num_attention_heads: query heads, H.
        layer_idx: which layer of the cache this one reads and writes.
        rotary: whether positions enter by RoPE; without it the attention knows no positions.
        rope_interleave: layout of rotary pairs, see `rope.rotate`.
        rope_parameters: how the rotary angles are made, see `rope.RotaryEmbedding`; some scale the scores too.
        rms_norm_eps: what the norms of the block add to the mean square, for norms that the mechanism has.
        output_gate: "element" or "head" for a gate on what the heads have read, see `output`; None for none.
        qk_norm: whether queries and keys are normed before they turn, a head or "whole", see `normed`.
        attention_bias: whether the projections of the hidden states have biases (the output's has none), see `linear`.
        options: the mechanism's own hyper-parameters, see its `resolve`.

    Attributes:
        description: what it is, in the words that follow "a decoder with".
        equation: what it computes, in a line.
        cache_option: the option that sets the size of the cache, which a study solves for where the cache is held
            equal; None where nothing does.
        takes: which of `output_gate`, `qk_norm` and `attention_bias` it follows, which are common to mechanisms.
        fixed_options: those of its options that its definition fixes, so that a study has no choice of them.
        stock: the `model_type` of transformers' decoder that computes the same with the same weights, if there is one.
        as_matrices: names of those of its modules whose weights it multiplies with beside calling them, which must stay
            plain matrices.
        turns_when_read: whether keys are kept as they are and turned when they are read, so that `position_embeddings`
            have two more tables, of all tokens that are kept.
        softmaxes_per_head: how many rows of probabilities a head has.
        decode_modes: the ways in which the mechanism can attend to one and the same answer, see `set_decode_mode`.
        decode_mode: the one in use.
    """

    description: ClassVar[str]
    equation: ClassVar[str]
    cache_option: ClassVar[str | None] = None
    takes: ClassVar[frozenset[str]] = frozenset()
    fixed_options: ClassVar[frozenset[str]] = frozenset()
    stock: ClassVar[str | None] = None
    as_matrices: ClassVar[frozenset[str]] = frozenset()
    turns_when_read: ClassVar[bool] = False
    softmaxes_per_head: int = 1
    decode_modes: ClassVar[tuple[str, ...]] = ("auto",)
    decode_mode: str = "auto"

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            cls.forward = either_name(cls.forward)  # type: ignore[method-assign]  # what it takes is as before

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        *,
        layer_idx: int = 0,
        rotary: bool = True,
        rope_interleave: bool = False,
        rope_parameters: dict | None = None,
        rms_norm_eps: float = 1e-6,
        output_gate: str | None = None,
        qk_norm: bool | str = False,
        attention_bias: bool = False,
        **options: Option,
    ):
        super().__init__()
        self.hidden_size = hidden_size
        self.num_heads = num_attention_heads
        self.layer_idx = layer_idx
        self.rotary = rotary
        self.rope_interleave = rope_interleave
        self.rope_parameters = rope_parameters
        self.rms_norm_eps = rms_norm_eps
        self.output_gate, self.qk_norm, self.attention_bias = output_gate, qk_norm, attention_bias
        check_common(type(self), {name: getattr(self, name) for name in COMMON})
        check_options(options, self.option_types())
        for name, value in self.resolve(hidden_size, num_attention_heads, rotary=rotary, **options).items():
            setattr(self, name, value)

    @classmethod
    @abstractmethod
    def resolve(cls, hidden_size: int, num_attention_heads: int, *_: Any, **options: Any) -> Options:
        """Return the mechanism's own hyper-parameters, complete: what is not given derives from the size.

        The keyword arguments of an implementation are `rotary`, and the options that the mechanism knows; their
        annotations (`int | None`, `bool`, `float`) say what each may be.

        Raises:
            UserError: a value that cannot work, with its field.
        """

    @classmethod
    def option_types(cls) -> dict[str, type]:
        """Return what each of the mechanism's own hyper-parameters may be: the keyword arguments of its `resolve`."""
        given = inspect.signature(cls.resolve, eval_str=True).parameters.values()
        options = (one for one in given if one.kind is one.KEYWORD_ONLY and one.name != "rotary")
        return {option.name: option.annotation for option in options}

    @classmethod
    def option_names(cls) -> set[str]:
        """Return the names of the mechanism's own hyper-parameters."""
        return set(cls.option_types())

    @classmethod
    def free_options(cls) -> set[str]:
        """Return the names of those hyper-parameters that its definition leaves to choose."""
        return cls.option_names() - cls.fixed_options

    def resolved(self) -> Options:
        """Return the layer's own hyper-parameters, complete."""
        return {name: getattr(self, name) for name in self.option_names()}

    @classmethod
    @abstractmethod
    def rotary_dim(cls, options: Options) -> int:
        """Return how many dimensions of a key RoPE turns, given resolved options."""

    @abstractmethod
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        attentions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Mix each position with those before it.

        Args:
            hidden_states: `[B, T, D]`.
            position_embeddings: cosines and sines, each `[B or 1, T, rotary_dim / 2]`; None without RoPE. Where a
                mechanism `turns_when_read`, followed by those of all S tokens that are kept.
            attention_mask: see `kernels.attend`.
            cache: a transformers cache, read and extended by T tokens at `layer_idx`, or `past_key_values`.
            attentions: where given, the probabilities `[B, H, T, S]` are appended to it; see `kernels.attend`.

        Returns:
            `[B, T, D]`.
        """

    @abstractmethod
    def cache_parts(self) -> dict[str, int]:
        """Return how many numbers this layer keeps in the cache for one token of one sequence, part by part.

        The names say what is kept, such as "latent" and "rotary key".
        """

    def cache_elements_per_token(self) -> int:
        """Return how many numbers this layer keeps in the cache for one token of one sequence, in all."""
        return sum(self.cache_parts().values())

    @abstractmethod
    def flops(self, num_tokens: int, context: int) -> int:
        """Return the matrix-multiplication FLOPs of one forward pass of this layer.

        Two per multiply-add; every one of `num_tokens` new tokens is scored against all `context` tokens (itself
        and the cached ones included), which is what is computed where causality is a mask. Norms, softmax and
        rotation are not counted, as in torch's FLOP counter.
        """

    def decoding_flops(self, context: int) -> int:
        """Return the FLOPs of one new token among `context` tokens, where they differ from those of `flops`."""
        return self.flops(1, context)

    def init_weights(self, std: float) -> None:
        """Set what should not start as every matrix does, in place; called after all of its modules have started.

        Args:
            std: standard deviation of every matrix at the start.
        """

    def remember(self, cache: Cache | None, key: torch.Tensor, value: torch.Tensor, **more: Any) -> tuple[Kept, Kept]:
        """Append to this layer's cache, where there is one, and return all that is kept: see `remember.remember`."""
        return remember(cache, self.layer_idx, key, value, **more)
