"""Step 3, if asked for: how many numbers the latent of each layer has, where all layers together have a budget.

The best latent of r numbers leaves an error of Σ_{k>r} s_k², s the singular values of the layer's weighted problem
(`joint_rank.low_rank`, Eckart and Young 1936), so that number r + 1 is worth s_{r+1}². In parts of the mean square of
the residual stream behind the layer, which all that follow read, these compare layers: an error of the first layers is
large there, and what a layer gives may be small in it. Within a layer they fall, and so the sum of all errors is least
where the next number goes to the layer in which it is worth most, until none are left.
"""

import torch

from .choosing import Constants, Studied, stand_in_of
from .joint_rank import parts_of, singular
from .rotary_part import without_rope

Tensor = torch.Tensor


def ranks_of(layers: list[Studied], constants: list[Constants], kept: list[int], rank: int) -> list[int]:
    """Return the rank of each layer's latent.

    Args:
        layers: of the original.
        constants: of each.
        kept: how many components of each frequency turn.
        rank: on average.
    """
    worth = [worth_of(layer, own, kept) for layer, own in zip(layers, constants, strict=True)]
    return shared_out(worth, rank * len(layers))


def worth_of(layer: Studied, constants: Constants, kept: list[int]) -> Tensor:
    """Return what each number of a layer's latent is worth, the first the most, in parts of the residual stream.

    The weighted problem has both covariances in parts of their traces; here they count by the mean of those.
    """
    stand_in = stand_in_of(layer, constants)
    maps = without_rope(layer.maps, kept, stand_in)
    parts = [part for part in parts_of(maps, layer.moments, stand_in, constants.key_weight) if len(part.rows)]
    size = sum(float(part.covariance.trace()) for part in parts) / len(parts) ** 2
    return singular(parts)[1].square() * size / layer.stream


def shared_out(worth: list[Tensor], total: int) -> list[int]:
    """Return how many numbers each layer gets of `total`, at least one and at most as many as have a worth.

    Args:
        worth: of each layer's numbers, falling.
        total: to give away.
    """
    offers = [(float(value), layer) for layer, values in enumerate(worth) for value in values[1:]]
    taken = sorted(offers, key=lambda offer: -offer[0])[: total - len(worth)]
    return [1 + sum(layer == own for _, own in taken) for layer in range(len(worth))]
