"""Thin keys: queries and keys of another width than the values, in groups. A mechanism from outside, whole.

    k_g = W_g^K h  (d_k numbers),  v_g = W_g^V h  (d_v numbers)
    o_i = Σ_s softmax_s(q_i · k_g,s / √d_k) v_g,s,   g = ⌊i · G / H⌋

To choose what to read needs fewer numbers than what is read. Cached per token: G · (d_k + d_v).
"""

import torch
from torch import nn

from mla_experiments import Attention
from mla_experiments.kernels import attend, project
from mla_experiments.modeling.attention.checks import head_width, require
from mla_experiments.modeling.attention.heads import split_heads
from mla_experiments.modeling.attention.rope import rotate


class ThinKeys(Attention):
    """G key-value heads, whose keys are thinner than their values."""

    description = "thin-key attention"
    equation = "o_i = Σ_s softmax_s(q_i · k_g,s / √d_k) v_g,s,  g = ⌊i · G / H⌋"
    cache_option = "num_key_value_heads"
    takes = frozenset({"output_gate"})

    def __init__(self, hidden_size: int, num_attention_heads: int, **kwargs):
        super().__init__(hidden_size, num_attention_heads, **kwargs)
        self.q_proj = nn.Linear(hidden_size, self.num_heads * self.key_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, self.num_key_value_heads * self.key_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, self.num_key_value_heads * self.value_dim, bias=False)
        self.make_output(self.value_dim)
        self.scale = (self.key_dim**-0.5) * self.sharpness

    @classmethod
    def resolve(
        cls,
        hidden_size: int,
        num_attention_heads: int,
        *,
        rotary: bool = True,
        num_key_value_heads: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        sharpness: float = 1.0,
    ) -> dict:
        """By default half the heads, keys half as wide as values, and scores as they are."""
        groups = num_key_value_heads or max(1, num_attention_heads // 2)
        require(
            groups >= 1 and num_attention_heads % groups == 0,
            f"num_key_value_heads={groups} must divide num_attention_heads={num_attention_heads}.",
        )
        value_dim = value_dim or head_width(hidden_size, num_attention_heads)
        key_dim = key_dim or max(2, value_dim // 4 * 2)
        require(key_dim >= 1 and not (rotary and key_dim % 2), f"key_dim={key_dim} must be positive and even.")
        require(sharpness > 0, f"sharpness={sharpness} must be positive.")
        own = {"num_key_value_heads": groups, "key_dim": key_dim, "value_dim": value_dim}
        return own | {"sharpness": float(sharpness)}

    @classmethod
    def rotary_dim(cls, options: dict) -> int:
        """RoPE turns whole keys."""
        return options["key_dim"]

    def forward(self, hidden_states, position_embeddings, attention_mask=None, cache=None, attentions=None):
        """Project, rotate, remember, attend, project."""
        query = split_heads(project(self.q_proj, hidden_states), self.key_dim)  # [B, H, T, d_k]
        key = split_heads(project(self.k_proj, hidden_states), self.key_dim)  # [B, G, T, d_k]
        value = split_heads(project(self.v_proj, hidden_states), self.value_dim)  # [B, G, T, d_v]
        if self.rotary:
            query = rotate(query, position_embeddings, self.rope_interleave)
            key = rotate(key, position_embeddings, self.rope_interleave)
        key, value = self.remember(cache, key, value)  # [B, G, S, ...]
        attended = attend(query, key, value, attention_mask, self.scale, attentions)  # [B, H, T, d_v]
        return self.output(attended, hidden_states)

    def cache_parts(self) -> dict[str, int]:
        """G · (d_k + d_v)."""
        return {"keys": self.num_key_value_heads * self.key_dim, "values": self.num_key_value_heads * self.value_dim}

    def flops(self, num_tokens: int, context: int) -> int:
        """Three projections and that of the output, scores and sums."""
        keys_and_values = self.num_key_value_heads * (self.key_dim + self.value_dim)
        projections = self.hidden_size * (self.num_heads * self.key_dim + keys_and_values)
        attention = context * self.num_heads * (self.key_dim + self.value_dim)
        return 2 * num_tokens * (projections + attention) + self.output_flops(num_tokens)


def thin_keys(weights: dict[str, torch.Tensor], hidden_states: torch.Tensor, settings: dict) -> torch.Tensor:
    """The same in plain loops, for the check of the contract: `[B, T, D]` to `[B, T, D]`."""
    heads, groups, width = (settings[name] for name in ("num_attention_heads", "num_key_value_heads", "key_dim"))

    def turned(vector, place):
        if not settings["rotary"]:
            return vector
        half = width // 2
        angles = place * settings["rope_theta"] ** (-2 * torch.arange(half, dtype=torch.float64) / width)
        first, second = vector[:half], vector[half:]
        return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))

    output = torch.empty_like(hidden_states)
    for row, sequence in enumerate(hidden_states):
        queries = weights["q_proj.weight"].view(heads, width, -1)
        keys = weights["k_proj.weight"].view(groups, width, -1)
        values = weights["v_proj.weight"].view(groups, settings["value_dim"], -1)
        for now in range(len(sequence)):
            read = []
            for head in range(heads):
                group = head * groups // heads
                asked = turned(queries[head] @ sequence[now], now)
                seen = [turned(keys[group] @ sequence[place], place) for place in range(now + 1)]
                scores = torch.stack([asked @ key for key in seen]) * settings["sharpness"] / width**0.5
                shares = scores.softmax(dim=0)
                read.append(sum(share * (values[group] @ sequence[place]) for place, share in enumerate(shares)))
            output[row, now] = weights["o_proj.weight"] @ torch.cat(read)
    return output
