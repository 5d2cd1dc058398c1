"""Step 6: the norm of the latent that stock DeepSeek-V3 applies, made without effect by one constant channel.

Stock MLA norms the latent, c → w ⊙ c / √(mean(c²) + ε) (`DeepseekV3RMSNorm`), which no linear latent survives. With
one more channel that always holds K, K² ≫ Σ c², the root is K / √r to a relative Σ c² / 2K², below the rounding of
single precision for K² > 2²⁴ Σ c²; with w = K / √r the norm then changes nothing. The channel costs one number of the
cache and a bias (`attention_bias`), and no head reads it. A latent of queries is normed, and mended, likewise.

Nor may training have a head read it. Zeros stand where K would be read; one step of Adam moves each by its rate, and
the rate times K is the end of the model: so `hold` takes their gradients away.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import torch
from torch import nn

from ..modeling import DecoderForCausalLM
from .latent_maps import LatentMaps

Tensor = torch.Tensor
MARGIN = 2.0**30  # of K² over the largest Σ c² that was seen: 2²⁴ for rounding, 2⁶ for text that was not


class Norms(NamedTuple):
    """w, the weight of every number in a norm: of the latent, and of the queries' where they have one."""

    latent: float
    queries: float | None


def with_constant(maps: LatentMaps, inputs: Tensor) -> tuple[LatentMaps, Norms]:
    """Return the same layer with a constant channel at the end of its latents, and the weights of their norms.

    Args:
        maps: of the layer, its latents linear.
        inputs: `[N, T, E]`, of calibration text.
    """
    width = maps.output.shape[0]
    latent, weight = with_channel(maps.latent, inputs, width)
    changed = {"latent": latent, "rotary_key": with_bias(maps.rotary_key, width)}
    changed |= {name: unread(getattr(maps, name)) for name in ("key_up", "value_up")}
    of_queries, queries = None, ("content_queries", "rotary_queries")
    if maps.query_latent is None:
        changed |= {name: with_bias(getattr(maps, name), width) for name in queries}
    else:
        changed["query_latent"], of_queries = with_channel(maps.query_latent, inputs, width)
        changed |= {name: unread(getattr(maps, name)) for name in queries}
    return dataclasses.replace(maps, **changed), Norms(weight, of_queries)


def with_channel(down: Tensor, inputs: Tensor, width: int) -> tuple[Tensor, float]:
    """Return a latent's map with a row for the constant, `[r + 1, D + 1]`, and w.

    Args:
        down: A, `[r, E]`.
        inputs: `[N, T, E]`.
        width: D.
    """
    latent = inputs.double() @ down.T
    weight = 2.0 ** math.ceil(math.log2(MARGIN * float(latent.square().sum(-1).max())) / 2)  # exact in any precision
    constant = torch.zeros(1, width + 1, dtype=torch.float64)
    constant[0, width] = weight * math.sqrt(len(down) + 1)  # K
    return torch.cat((with_bias(down, width), constant)), weight


def unread(up: Tensor) -> Tensor:
    """Return maps of a latent `[H, d, r]` with zeros for the constant, `[H, d, r + 1]`."""
    return nn.functional.pad(up, (0, 1))


def with_bias(rows: Tensor, width: int) -> Tensor:
    """Return maps of the input `[..., E]` with a column of biases, zeros where there was none."""
    return rows if rows.shape[-1] > width else nn.functional.pad(rows, (0, 1))


def hold(model: DecoderForCausalLM) -> None:
    """Have training leave constant channels as they are, and unread; a model without them is left alone."""
    pairs = (("kv_a_proj_with_mqa", "kv_b_proj"), ("q_a_proj", "q_b_proj"))
    for layer, names in itertools.product(model.model.layers, pairs):
        compress, up = (getattr(layer.self_attn, name, None) for name in names)
        if not (isinstance(compress, nn.Linear) and isinstance(up, nn.Linear)) or compress.bias is None:
            continue
        channel = up.in_features - 1  # the last of the latent
        if not compress.weight[channel].any() and not up.weight[:, channel].any():
            hold_rows(compress.weight, channel)
            hold_rows(compress.bias, channel)
            hold_rows(up.weight, (slice(None), channel))


def hold_rows(parameter: torch.Tensor, rows: int | slice | tuple) -> None:
    """Take the gradient of some rows of a parameter away, before anything adds it up or measures its norm."""
    moves = torch.ones_like(parameter)
    moves[rows] = 0
    parameter.register_hook(lambda gradient: gradient * moves.to(gradient.device))
