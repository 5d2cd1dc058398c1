"""Step 4: the norm of the latent that stock DeepSeek-V3 applies, made without effect by one constant channel.

Stock MLA norms the latent, c → w ⊙ c / √(mean(c²) + ε) (`DeepseekV3RMSNorm`), which no linear latent survives. With
one more channel that always holds K, K² ≫ Σ c², the root is K / √r to a relative Σ c² / 2K², below the rounding of
single precision for K² > 2²⁴ Σ c²; with w = K / √r the norm then changes nothing. The channel costs one number of the
cache and a bias (`attention_bias`), and no head reads it.

Nor may training have a head read it. Zeros stand where K would be read; one step of Adam moves each by its rate, and
the rate times K is the end of the model: so `hold` takes their gradients away.
"""

import dataclasses
import math

import torch
from torch import nn

from ..modeling import DecoderForCausalLM
from .latent_maps import LatentMaps

Tensor = torch.Tensor
MARGIN = 2.0**30  # of K² over the largest Σ c² that was seen: 2²⁴ for rounding, 2⁶ for text that was not


def with_constant(maps: LatentMaps, inputs: Tensor) -> tuple[LatentMaps, float]:
    """Return the same layer with a constant channel at the end of its latent, and w, the weight of the norm.

    Args:
        maps: of the layer, its latent linear.
        inputs: `[N, T, E]`, of calibration text.
    """
    latent = inputs.double() @ maps.latent.T
    weight = 2.0 ** math.ceil(math.log2(MARGIN * float(latent.square().sum(-1).max())) / 2)  # exact in any precision
    level = weight * math.sqrt(maps.rank + 1)  # K
    width = maps.output.shape[0]
    constant = torch.zeros(1, width + 1, dtype=torch.float64)
    constant[0, width] = level
    without = torch.zeros(*maps.key_up.shape[:2], 1, dtype=torch.float64)
    biased = {
        name: with_bias(getattr(maps, name), width) for name in ("content_queries", "rotary_queries", "rotary_key")
    }
    return dataclasses.replace(
        maps,
        latent=torch.cat((with_bias(maps.latent, width), constant)),
        key_up=torch.cat((maps.key_up, without), dim=2),
        value_up=torch.cat((maps.value_up, torch.zeros(*maps.value_up.shape[:2], 1, dtype=torch.float64)), dim=2),
        **biased,
    ), weight


def with_bias(rows: Tensor, width: int) -> Tensor:
    """Return maps of the input `[..., E]` with a column of biases, zeros where there was none."""
    return rows if rows.shape[-1] > width else nn.functional.pad(rows, (0, 1))


def hold(model: DecoderForCausalLM) -> None:
    """Have training leave constant channels as they are, and unread; a model without them is left alone."""
    for layer in model.model.layers:
        compress = getattr(layer.self_attn, "kv_a_proj_with_mqa", None)
        up = getattr(layer.self_attn, "kv_b_proj", None)
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
