"""Step 2: the rotary part is concentrated in few pairs, and RoPE is left off the rest.

Concentration is exact. Per frequency, the components z_f = T_f k_f of the keys of all groups (`grouped_maps.py`) are
their principal components, complex, each group weighted by how strongly its queries read that frequency: with
M_f = diag_g(Σ_{i in g} E|q_if|²) and S_f = E[k_f k_fᴴ],

    M_f^½ S_f M_f^½ = V Λ Vᴴ,   z_f = Vᴴ M_f^½ k_f,   k_f = M_f^-½ V z_f.

If queries and keys were independent, leaving out component j would change scores by λ_j in the mean square: the first
components hold the most that a frequency can hold in so many (Eckart and Young 1936).

Leaving RoPE off is where something is lost. What a component adds to a score, Re(conj(q) z e^{-iωΔ}) at distance Δ, can
stay where the rotation is replaced by one number: the best in the mean square, where rotation and content are
independent, is its mean over the distances at which the head reads,

    c_if = E[e^{-iω_f Δ}],

which is put into the queries. It is near 1 for low frequencies, where little is lost, and near 0 for high ones, whose
content could not be read at a distance anyway. With c = 1 RoPE is simply left off, as TransMLA does
(Meng et al. 2025, §4.2). Which of the two a layer takes is chosen by what its output loses (`choosing.py`).
"""

import dataclasses

import torch

from .grouped_maps import GroupedMaps, as_numbers
from .latent_maps import LatentMaps
from .moments import Moments

Tensor = torch.Tensor
LEAST = 1e-12  # of the strongest group's weight: a group whose queries do not read a frequency still has its keys kept


def concentrated(maps: GroupedMaps, moments: Moments) -> tuple[GroupedMaps, Tensor]:
    """Return the same layer with its components in the order of what queries read of them, and Λ, `[F, G]`.

    Args:
        maps: of the layer.
        moments: of its input.
    """
    keys, groups = maps.keys, maps.num_groups
    second = torch.einsum("gfd,de,nfe->fgn", keys, moments.read.to(keys.dtype), keys.conj())  # [F, G, G]
    read = moments.query_energy.view(groups, maps.heads_per_group, -1).sum(1).T  # [F, G]
    root = read.clamp(min=LEAST * float(read.max())).sqrt()
    weighted = root.unsqueeze(2) * second * root.unsqueeze(1)
    energy, vectors = torch.linalg.eigh((weighted + weighted.mH) / 2)
    energy, vectors = energy.flip(-1), vectors.flip(-1)  # the largest first
    components = torch.einsum("fgj,fg,gfe->fje", vectors.conj(), root.to(keys.dtype), keys)
    mixing = (vectors / root.unsqueeze(2)).transpose(0, 1)  # [G, F, G]
    return dataclasses.replace(maps, components=components, mixing=mixing), energy


def mean_rotations(moments: Moments, frequencies: Tensor) -> Tensor:
    """Return c_if, `[H, F]`, complex: what stands for the rotation where RoPE is left off.

    Args:
        moments: of the layer.
        frequencies: ω, `[F]`, in radians per position.
    """
    distances = torch.arange(moments.distances.shape[1], dtype=torch.float64)
    turned = torch.polar(torch.ones(()).double(), -distances.unsqueeze(1) * frequencies.double())  # [Δ, F]
    share = moments.distances / moments.distances.sum(1, keepdim=True)
    return share.to(turned.dtype) @ turned


def without_rope(maps: GroupedMaps, kept: list[int], stand_in: Tensor) -> LatentMaps:
    """Return MLA's maps: the first components of each frequency turn, the others are content beside the values.

    Args:
        maps: concentrated.
        kept: how many components of each frequency keep RoPE, F numbers from 0 to G; with G everywhere it is exact.
        stand_in: c, `[H, F]`, for the rotation of what does not turn.
    """
    groups, each = maps.num_groups, maps.heads_per_group
    pairs = [(f, j) for f, count in enumerate(kept) for j in range(count)]
    frequency, component = (torch.tensor([pair[k] for pair in pairs], dtype=torch.long) for k in (0, 1))
    rotary_key = maps.components[frequency, component]  # [P, E]
    by_head = maps.mixing.repeat_interleave(each, dim=0)  # [H, F, G]
    rotary_queries = maps.queries[:, frequency] * by_head[:, frequency, component].conj().unsqueeze(2)  # [H, P, E]
    left = torch.arange(groups) >= torch.tensor(kept).unsqueeze(1)  # [F, G]
    content = torch.einsum("gfj,fj,fje->gfe", maps.mixing, left.to(maps.mixing.dtype), maps.components)
    keys, values = as_numbers(content, 1).flatten(0, 1), maps.values.flatten(0, 1)  # [G d_h, E] each
    has_content = bool(left.any())
    latent = torch.cat((keys, values)) if has_content else values
    key_up, value_up = reading_of_groups(maps, len(keys) if has_content else 0, len(latent))
    return LatentMaps(
        latent=latent,
        key_up=key_up,
        value_up=value_up,
        content_queries=as_numbers(maps.queries * stand_in.conj().unsqueeze(2), 1),
        rotary_queries=as_numbers(rotary_queries, 1),
        rotary_key=as_numbers(rotary_key, 0),
        output=maps.output,
    )


def reading_of_groups(maps: GroupedMaps, keys: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return U^K and U^V, `[H, d, r]`, that take every head's key and value out of all groups' side by side.

    Args:
        maps: of the layer.
        keys: how many rows of the latent are keys, before the values; 0 where there is no content in keys.
        rank: r, of all rows.
    """
    groups, each = maps.num_groups, maps.heads_per_group
    place = torch.eye(rank, dtype=torch.float64)
    values = place[keys:].view(groups, -1, rank).repeat_interleave(each, dim=0)
    if not keys:
        return torch.zeros(maps.num_heads, 2 * maps.queries.shape[1], rank, dtype=torch.float64), values
    return place[:keys].view(groups, -1, rank).repeat_interleave(each, dim=0), values
