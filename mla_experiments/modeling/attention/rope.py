"""Rotary position embeddings (Su et al. 2021, RoFormer, §3.2.2, eq. 14-15), in both layouts in use.

A rotary dimension d holds d/2 pairs; pair i of a token at position p turns by the angle p · theta^(-2i/d). Which
two numbers form a pair is a matter of layout: `half_split` (Llama) pairs i with i + d/2, `interleaved` (RoFormer,
DeepSeek) pairs 2i with 2i + 1. Scores depend on the layout, so a checkpoint must be read in its own.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .base import require, require_number, require_whole

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
# those that stretch the context in one way for all lengths; "dynamic" and "longrope" change with the length at hand
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
LLAMA3 = ("low_freq_factor", "high_freq_factor")
NEEDED = {"default": (), "linear": ("factor",), "llama3": ("factor", *LLAMA3), "yarn": ("factor",)}
POSITIVE = ("factor", *LLAMA3, "attention_factor")
DEFAULT_IF_ZERO = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotation angles, made once per forward pass and shared by all layers.

    Args:
        dim: how many numbers of a head turn.
        rope_parameters: transformers' standard description: `rope_type`, `rope_theta`, and what the type needs.
    """

    def __init__(self, dim: int, rope_parameters: dict | None = None):
        super().__init__()
        self.dim, self.rope_parameters = dim, rope_parameters or DEFAULT_ROPE
        check_rope(self.rope_parameters)
        frequencies, self.attention_factor = self.frequencies()
        self.inv_freq = nn.Buffer(frequencies, persistent=False)  # [dim / 2]

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """Return the angle per position of every pair, `[dim / 2]` in radians, and the factor on cosines and sines."""
        if self.rope_parameters["rope_type"] == "default":
            exponents = torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim
            return self.rope_parameters["rope_theta"] ** -exponents, 1.0
        described = PreTrainedConfig(hidden_size=self.dim, num_attention_heads=1, head_dim=self.dim)
        described.max_position_embeddings = None  # what the types known here need of it stands in the parameters
        described.rope_parameters = self.rope_parameters
        return ROPE_INIT_FUNCTIONS[self.rope_parameters["rope_type"]](described)

    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, each `[B, T, dim / 2]`, for positions `[B, T]`; angles are taken in f32."""
        angles = position_ids[..., None].float() * self.inv_freq.float()
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.attention_factor).to(dtype)


def check_rope(described: dict) -> None:
    """Refuse a description of RoPE, as transformers completes it, that cannot work.

    Raises:
        UserError: an unknown type, or a number that is missing or impossible, with its field.
    """
    kind = described["rope_type"]
    require(
        isinstance(kind, str) and kind in ROPE_TYPES,
        f"rope_type={kind!r} is not known here; choose one of {', '.join(ROPE_TYPES)}.",
    )
    for name, value in described.items():
        require(not isinstance(value, dict), f"rope_parameters has {name}={value}; one RoPE serves all layers here.")
    for name in ("rope_theta", *NEEDED[kind]):
        require(name in described, f"rope_parameters lacks {name}, which rope_type={kind!r} needs.")
    require_number("rope_theta", described["rope_theta"], above=1)
    given = [name for name in POSITIVE if name in NEEDED[kind] or described.get(name) is not None]
    for name in given + [name for name in DEFAULT_IF_ZERO if described.get(name)]:
        require_number(name, described[name])
    if kind == "llama3":
        low, high = (described[name] for name in LLAMA3)
        require(low < high, f"low_freq_factor={low} must be below high_freq_factor={high}.")
    if "original_max_position_embeddings" in described:
        require_whole("original_max_position_embeddings", described["original_max_position_embeddings"])
    part = described.get("partial_rotary_factor", 1.0)
    require(part == 1, f"partial_rotary_factor={part!r} is not known here; only heads that turn whole are.")


def score_factor(rope_parameters: dict | None) -> float:
    """Return DeepSeek's factor on the scores where YaRN stretches the context: (0.1 · mscale_all_dim · ln factor + 1)².

    Peng et al. 2023, YaRN, §3.4, eq. 21-22, scale queries and keys; DeepSeek-V2's dimensions without RoPE need it too.
    """
    described = rope_parameters or DEFAULT_ROPE
    if described["rope_type"] == "default" or not described.get("mscale_all_dim") or described["factor"] <= 1:
        return 1.0
    return (0.1 * described["mscale_all_dim"] * math.log(described["factor"]) + 1.0) ** 2


def rotate(x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], interleaved: bool) -> torch.Tensor:
    """Turn every pair of `x` `[B, H, T, D]` by its angle; cosines and sines are `[B or 1, T, D / 2]`.

    The result is half-split in either layout: queries and keys are permuted alike, so their products are the same.
    """
    cos, sin = (table.unsqueeze(1) for table in position_embeddings)  # [B, 1, T, D / 2]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
