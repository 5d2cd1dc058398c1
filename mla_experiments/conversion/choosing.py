"""What is chosen for a budget: the rotary pairs, how much of the cache they take, and each layer's own constants.

RoPE has one table for all layers, so the pairs that turn are chosen for all together: component j of frequency f counts
by what scores lose, in the mean square, where its rotation is replaced by its mean,

    λ_fj (1 - Σ_i |c_if|² / H),

in parts of what the keys of its layer would lose in all, summed over the layers. How many pairs turn is then tried
out: what attention's outputs lose at the same size of cache, on windows of calibration text, decides, and so do two
constants of each layer: what stands in for the rotation of the rest, and how much an error in a key
weighs beside one in a value.
"""

from dataclasses import dataclass, replace

import torch

from ..modeling.attention.checks import require
from .grouped_maps import GroupedMaps, KeysAndValues, stacked
from .joint_rank import with_rank
from .latent_maps import LatentMaps, in_single_precision, in_unit_variance, output_of
from .moments import Moments, moments_of
from .rotary_part import concentrated, mean_rotations, without_rope

Tensor = torch.Tensor
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the cache, that rotary keys may take
OTHER_KEY_WEIGHTS = (1.0, 10.0)
PROBES = 2  # windows on which choices are tried
PROBED_EVERY = 5  # layers, where the number of pairs is tried out


@dataclass(frozen=True)
class Constants:
    """What a layer's conversion may have of its own.

    Attributes:
        by_mean: whether the mean of its rotation stands in for what does not turn; otherwise RoPE is simply left off.
        key_weight: of an error in a key beside one in a value, see `joint_rank.with_rank`.
    """

    by_mean: bool
    key_weight: float


USUAL = Constants(by_mean=True, key_weight=3.0)  # best for most layers


@dataclass(frozen=True)
class Studied:
    """What is known of a layer of the original once calibration text has passed.

    Attributes:
        maps: its own, concentrated.
        energy: Λ, `[F, G]`, see `rotary_part.concentrated`.
        moments: of its inputs.
        mean_rotation: c, `[H, F]`.
        inputs: `[N, T, E]` of a few windows, to try on.
        outputs: `[N, T, D]`, what the layer gives for them.
        stream: mean square of the residual stream `[D]` behind the layer, of all but the first token.
    """

    maps: GroupedMaps
    energy: Tensor
    moments: Moments
    mean_rotation: Tensor
    inputs: Tensor
    outputs: Tensor
    stream: float

    def lost(self, maps: LatentMaps, rotation: tuple[Tensor, Tensor]) -> float:
        """Return the mean square of what a converted layer gives wrong, in parts of the output's.

        The first token, which sees itself alone, does not count.
        """
        wrong = output_of(in_single_precision(maps), self.inputs, rotation) - self.outputs
        return float(wrong[:, 1:].square().sum() / self.outputs[:, 1:].square().sum())


@torch.no_grad()
def study_of(
    attention: KeysAndValues,
    inputs: Tensor,
    rotation: tuple[Tensor, ...],
    before: Tensor,
    frequencies: Tensor,
    factor: float,
    of_queries: bool,
) -> Studied:
    """Return what is to be known of a layer.

    Args:
        attention: of keys and values.
        inputs: `[N, T, D]`, what it gets.
        rotation: cosines and sines, `[1, T, F]`.
        before: `[N, T, D]`, the residual stream that it adds to.
        frequencies: ω, `[F]`.
        factor: on cosines and sines.
        of_queries: whether queries are to be of low rank, for which they are measured.

    Raises:
        UserError: attention that depends on nothing.
    """
    moments = moments_of(attention, inputs, rotation, of_queries)
    maps, energy = concentrated(stacked(attention, factor), moments)
    probes = inputs[:PROBES]
    outputs = torch.cat([attention(row.unsqueeze(0), rotation) for row in probes])
    require(
        bool(outputs.any() and energy.any()),
        f"attention of layer {attention.layer_idx} gives zeros, or reads all tokens alike, which leaves nothing to "
        "convert by",
    )
    stream = float((before[:PROBES] + outputs)[:, 1:].square().sum(-1).mean())
    looks = mean_rotations(moments, frequencies)
    return Studied(maps, energy, moments, looks, extended(attention, probes), outputs, stream)


def extended(attention: KeysAndValues, inputs: Tensor) -> Tensor:
    """Return inputs `[..., D]` as maps read them: with a one at the end where there are biases."""
    return torch.nn.functional.pad(inputs, (0, 1), value=1.0) if attention.attention_bias else inputs


def pairs_in_order(layers: list[Studied]) -> list[tuple[int, int]]:
    """Return frequency and component of every rotary pair, the one whose rotation is missed most first."""
    total = torch.zeros_like(layers[0].energy)
    for layer in layers:
        missed = layer.energy * (1 - layer.mean_rotation.abs().square().mean(0)).unsqueeze(1)
        total += missed / missed.sum()
    order = total.flatten().argsort(descending=True, stable=True).tolist()
    return [divmod(place, total.shape[1]) for place in order]


def kept_of(pairs: list[tuple[int, int]], frequencies: int) -> list[int]:
    """Return how many components of each frequency are among these pairs; components of one come in their order."""
    counts = [0] * frequencies
    for frequency, _ in pairs:
        counts[frequency] += 1
    return counts


def rotation_of(kept: list[int], frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[1, T, P]` of the pairs that turn."""
    turning = frequencies.float().repeat_interleave(torch.tensor(kept))
    angles = torch.arange(length).view(1, -1, 1) * turning
    return angles.cos(), angles.sin()


def best_split(layers: list[Studied], frequencies: Tensor, numbers: int) -> list[int]:
    """Return how many components of each frequency turn where a token and layer may cache so many numbers.

    Args:
        layers: of the original.
        frequencies: ω, `[F]`.
        numbers: of the latent and the rotary key together.
    """
    order, count = pairs_in_order(layers), len(frequencies)
    most = len(order)
    tried = sorted({min(most, max(1, round(share * numbers / 2))) for share in SHARES})
    probed = layers[PROBED_EVERY // 2 :: PROBED_EVERY]
    found: dict[int, float] = {}
    for pairs in tried:
        kept = kept_of(order[:pairs], count)
        rotation = rotation_of(kept, frequencies, layers[0].inputs.shape[1])
        rank = numbers - 2 * pairs
        found[pairs] = sum(layer.lost(converted(layer, kept, rank), rotation) for layer in probed)
    return kept_of(order[: min(found, key=found.__getitem__)], count)


def converted(layer: Studied, kept: list[int], rank: int | None, constants: Constants = USUAL) -> LatentMaps:
    """Return a layer's maps with RoPE on `kept` components alone and, unless None, a latent of `rank` numbers.

    Args:
        layer: of the original.
        kept: how many components of each frequency turn.
        rank: of the latent.
        constants: its own, or those that are best for most.
    """
    stand_in = stand_in_of(layer, constants)
    maps = without_rope(layer.maps, kept, stand_in)
    if rank is not None:
        maps = with_rank(maps, rank, layer.moments, stand_in, constants.key_weight)
    return in_unit_variance(maps, layer.moments.attended)


def stand_in_of(layer: Studied, constants: Constants) -> Tensor:
    """Return c, `[H, F]`, for the rotation of what does not turn."""
    return layer.mean_rotation if constants.by_mean else torch.ones_like(layer.mean_rotation)


def best_constants(layer: Studied, kept: list[int], rank: int, frequencies: Tensor) -> Constants:
    """Return the constants with which a layer's output loses least at one size: each chosen given the other."""
    rotation = rotation_of(kept, frequencies, layer.inputs.shape[1])

    def lost(constants: Constants) -> float:
        return layer.lost(converted(layer, kept, rank, constants), rotation)

    turned = min(USUAL, replace(USUAL, by_mean=False), key=lost)
    return min(turned, *(replace(turned, key_weight=weight) for weight in OTHER_KEY_WEIGHTS), key=lost)
