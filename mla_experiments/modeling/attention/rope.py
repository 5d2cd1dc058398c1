"""Rotary position embeddings (Su et al. 2021, RoFormer, §3.2.2, eq. 14-15), in both layouts in use.

A rotary dimension d holds d/2 pairs; pair i of a token at position p turns by the angle p · theta^(-2i/d). Which
two numbers form a pair is a matter of layout: `half_split` (Llama) pairs i with i + d/2, `interleaved` (RoFormer,
DeepSeek) pairs 2i with 2i + 1. Scores depend on the layout, so a checkpoint must be read in its own.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...errors import UserError
from ...kernels import turned
from .checks import require, require_number, require_whole

Rotation = tuple[torch.Tensor, ...] | None  # cosines and sines, each [B or 1, T, rotary_dim / 2]
DEFAULT_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3, LONGROPE = ("low_freq_factor", "high_freq_factor"), ("short_factor", "long_factor")
NEEDED: dict[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",), "llama3": ("factor", *LLAMA3),
    "longrope": (*LONGROPE, "original_max_position_embeddings"),
}  # fmt: skip
POSITIVE = ("factor", *LLAMA3, "attention_factor")
DEFAULT_IF_ZERO = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotation angles, made once per forward pass and shared by all layers.

    Args:
        dim: how many numbers of a head turn.
        rope_parameters: transformers' standard description: `rope_type`, `rope_theta`, and what the type needs.
        max_position_embeddings: the longest sequence; "dynamic" stretches beyond it, "longrope" by its ratio.

    Raises:
        UserError: a description that cannot work, see `check_rope`.
    """

    def __init__(self, dim: int, rope_parameters: dict | None = None, max_position_embeddings: int | None = None):
        super().__init__()
        self.dim, self.rope_parameters = dim, rope_parameters or DEFAULT_ROPE
        self.max_position_embeddings = max_position_embeddings
        check_rope(self.rope_parameters, dim, max_position_embeddings)
        self.kind = self.rope_parameters["rope_type"]
        frequencies, self.attention_factor = self.frequencies()
        self.inv_freq = nn.Buffer(frequencies, persistent=False)  # [dim / 2]
        if self.kind == "longrope":
            self.inv_freq_long = nn.Buffer(self._long_frequencies(), persistent=False)  # [dim / 2]

    @torch.no_grad()
    def fill(self) -> None:
        """Fill the buffers, where they were made without memory."""
        self.inv_freq.copy_(self.frequencies()[0])
        if self.kind == "longrope":
            self.inv_freq_long.copy_(self._long_frequencies())

    def frequencies(self, length: int | torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
        """Return the angle per position of every pair, `[dim / 2]` in radians, and the factor on cosines and sines.

        Args:
            length: of the sequence, which "dynamic" and "longrope" ask for; None is a short one.
        """
        if self.kind == "default":
            exponents = torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim
            return self.rope_parameters["rope_theta"] ** -exponents, 1.0
        of_one_head: dict[str, Any] = {"hidden_size": self.dim, "num_attention_heads": 1, "head_dim": self.dim}
        described = PreTrainedConfig(**of_one_head)
        described.max_position_embeddings = self.max_position_embeddings
        described.rope_parameters = self.rope_parameters
        return ROPE_INIT_FUNCTIONS[self.kind](described, self._device(), seq_len=length)

    def _device(self) -> torch.device | None:
        return self.inv_freq.device if hasattr(self, "inv_freq") else None

    def _long_frequencies(self) -> torch.Tensor:
        return self.frequencies(self.rope_parameters["original_max_position_embeddings"] + 1)[0]

    def _frequencies_for(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Those of the longest sequence at hand: as in transformers, cached keys keep the angles of their own time."""
        if self.kind == "dynamic":
            return self.frequencies(position_ids.max() + 1)[0]
        if self.kind == "longrope":
            is_long = position_ids.max() + 1 > self.rope_parameters["original_max_position_embeddings"]
            return torch.where(is_long, self.inv_freq_long, self.inv_freq)
        return self.inv_freq

    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, each `[B, T, dim / 2]`, for positions `[B, T]`; angles are taken in f32."""
        angles = position_ids[..., None].float() * self._frequencies_for(position_ids).float()
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.attention_factor).to(dtype)


def check_rope(described: dict, dim: int, max_position_embeddings: int | None) -> None:
    """Refuse a description of RoPE, as transformers completes it, that cannot work.

    Args:
        described: transformers' `rope_parameters`.
        dim: how many numbers of a head turn.
        max_position_embeddings: the longest sequence, if there is one.

    Raises:
        UserError: an unknown type, or a number that is missing or impossible, with its field.
    """
    for name, value in described.items():
        require(not isinstance(value, dict), f"rope_parameters has {name}={value}; one RoPE serves all layers here.")
    kind = described["rope_type"]
    require(
        isinstance(kind, str) and kind in NEEDED,
        f"rope_type={kind!r} is not known here; choose one of {', '.join(NEEDED)}.",
    )
    for name in ("rope_theta", *NEEDED[kind]):
        require(name in described, f"rope_parameters lacks {name}, which rope_type={kind!r} needs.")
    require_number("rope_theta", described["rope_theta"], above=1)
    given = [name for name in POSITIVE if name in NEEDED[kind] or described.get(name) is not None]
    for name in given + [name for name in DEFAULT_IF_ZERO if described.get(name)]:
        require_number(name, described[name])
    if described.get("original_max_position_embeddings") is not None:
        require_whole("original_max_position_embeddings", described["original_max_position_embeddings"])
    if kind == "llama3":
        low, high = (described[name] for name in LLAMA3)
        require(low < high, f"low_freq_factor={low} must be below high_freq_factor={high}.")
    if kind == "dynamic":
        require(max_position_embeddings is not None, "rope_type='dynamic' needs max_position_embeddings.")
        require(dim != 2, "rope_type='dynamic' needs more than one rotary pair; choose wider heads or another type.")
    if kind == "longrope":
        for name in LONGROPE:
            _check_factors(name, described[name], dim // 2)
    part = described.get("partial_rotary_factor", 1.0)
    require(part == 1, f"partial_rotary_factor={part!r} is not known here; only heads that turn whole are.")


def _check_factors(name: str, factors: list | tuple, count: int) -> None:
    fits = isinstance(factors, list | tuple) and len(factors) == count
    require(fits, f"{name} must be a list of {count} numbers, one for each rotary pair.")
    for factor in factors:
        require_number(name, factor)


def score_factor(rope_parameters: dict | None) -> float:
    """Return DeepSeek's factor on the scores where YaRN stretches the context: (0.1 · mscale_all_dim · ln factor + 1)².

    Peng et al. 2023, YaRN, §3.4, eq. 21-22, scale queries and keys; DeepSeek-V2's dimensions without RoPE need it too.
    """
    described = rope_parameters or DEFAULT_ROPE
    if described["rope_type"] == "default" or not described.get("mscale_all_dim") or described["factor"] <= 1:
        return 1.0
    return (0.1 * described["mscale_all_dim"] * math.log(described["factor"]) + 1.0) ** 2


def rotate(x: torch.Tensor, position_embeddings: Rotation, interleaved: bool) -> torch.Tensor:
    """Turn every pair of `x` `[B, H, T, D]` by its angle; cosines and sines are `[B or 1, T, D / 2]`.

    The result is half-split in either layout: queries and keys are permuted alike, so their products are the same.

    Raises:
        UserError: there are none.
    """
    cosines, sines = _tables(position_embeddings)
    return turned(x, (cosines, sines), interleaved)


def tables_as_read(
    position_embeddings: Rotation, context: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return cosines and sines of new tokens, and of all S that are kept, where keys are kept as they are.

    Args:
        position_embeddings: those of the new tokens `[B or 1, T, D / 2]`, then those of at least S kept ones; where
            there are but two tables, all are new.
        context: S.
    """
    tables = _tables(position_embeddings)
    return (tables[0], tables[1]), (tables[-2][:, :context], tables[-1][:, :context])


def _tables(position_embeddings: Rotation) -> tuple[torch.Tensor, ...]:
    if position_embeddings is None:
        raise UserError("position_embeddings=None, but this attention turns keys; give it cosines and sines")
    return position_embeddings
