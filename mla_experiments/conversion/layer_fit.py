"""Step 5: each layer converted anew for what it gets behind those before it, and mended by least squares; no gradients.

A layer of the converted model gets other inputs x' than the original's, since those before it have lost something. So,
layer by layer, its moments are taken of x' and the closed forms are solved again for them; then the output projection
takes up what a linear map can of what is still wrong,

    minimise  Σ_t |W z_t - attention(norm(x'_t))|² / a_t  +  λ |W - W^O|²,

z what the converted heads read, a_t the mean square of the target at position t: the first token's is a hundred times
all others' in models with attention sinks. λ is what loses least on windows that neither moments nor least squares have
seen, and W^O stays where none is better than it: with a few thousand tokens a fit can easily learn their noise.
"""

import dataclasses
from collections.abc import Iterator

import torch

from ..modeling import DecoderForCausalLM
from ..modeling.attention.checks import require
from .choosing import Constants, converted, extended, rotation_of, study_of
from .latent_maps import LatentMaps, in_single_precision, read_by_heads
from .low_rank_queries import with_query_rank

Tensor = torch.Tensor
RIDGES = (0.01, 0.1, 1.0, 10.0)  # λ, in parts of the mean of the diagonal of Σ z zᵀ
SET_ASIDE = 2  # windows on which λ is chosen
LEAST_TARGET = 1e-12


def refitted_layers(
    model: DecoderForCausalLM,
    constants: list[Constants],
    kept: list[int],
    ranks: list[int],
    windows: Tensor,
    query_rank: int | None = None,
) -> Iterator[LatentMaps]:
    """Yield the maps of every layer, converted along the converted model.

    Args:
        model: the original.
        constants: of each layer.
        kept: how many components of each frequency turn.
        ranks: of each layer's latent.
        windows: `[N, T]` token ids of calibration text.
        query_rank: of the queries' latents; None for none.

    Raises:
        UserError: no windows are left once some are set aside.
    """
    require(
        len(windows) > SET_ASIDE,
        f"calibration_tokens={windows.numel()} are {len(windows)} windows of {windows.shape[1]}, of which the fit sets "
        f"{SET_ASIDE} aside; give more, or --fit false",
    )
    decoder = model.model
    stream = torch.cat([decoder.embed_tokens(row.unsqueeze(0)) for row in windows])
    turned = decoder.rotary_emb(torch.arange(windows.shape[1]).unsqueeze(0), stream.dtype)
    frequencies, factor = decoder.rotary_emb.inv_freq.double(), decoder.rotary_emb.attention_factor
    rotation = rotation_of(kept, frequencies, windows.shape[1])
    for block, own, rank in zip(decoder.layers, constants, ranks, strict=True):
        inputs = torch.cat([block.input_layernorm(row.unsqueeze(0)) for row in stream])
        seen, before = inputs[:-SET_ASIDE], stream[:-SET_ASIDE]
        study = study_of(block.self_attn, seen, turned, before, frequencies, factor, query_rank is not None)
        maps = converted(study, kept, rank, own)
        if query_rank is not None:
            maps = with_query_rank(maps, query_rank, study.moments)
        rows = extended(block.self_attn, inputs)
        single = in_single_precision(maps)
        read = torch.cat([read_by_heads(single, row.unsqueeze(0), rotation) for row in rows])  # [N, T, H d_v]
        targets = torch.cat([block.self_attn(row.unsqueeze(0), turned) for row in inputs])
        maps = dataclasses.replace(maps, output=mended(maps.output, read, targets))
        yield maps
        stream += read @ maps.output.float().T
        for row in stream:
            row += block.mlp(block.post_attention_layernorm(row.unsqueeze(0)))[0]


def mended(output: Tensor, read: Tensor, targets: Tensor) -> Tensor:
    """Return the output projection `[D, H · d_v]` by least squares, or as it was where no λ is better.

    Args:
        output: as it is.
        read: z, `[N, T, H · d_v]`.
        targets: `[N, T, D]`.
    """
    importance = targets.square().mean((0, 2)).clamp(min=LEAST_TARGET).reciprocal().view(1, -1, 1)  # 1 / a_t
    seen, seen_targets = read[:-SET_ASIDE].double(), targets[:-SET_ASIDE].double()
    weighted = (seen * importance).flatten(0, 1)
    second = weighted.T @ seen.flatten(0, 1)
    missing = weighted.T @ (seen_targets - seen @ output.T).flatten(0, 1)
    ridge = float(second.diagonal().mean()) * torch.eye(len(second), dtype=second.dtype)
    tried = [output, *(output + torch.linalg.solve(second + size * ridge, missing).T for size in RIDGES)]

    def lost(candidate: Tensor) -> float:
        wrong = read[-SET_ASIDE:].double() @ candidate.T - targets[-SET_ASIDE:]
        return float((wrong.square() * importance).sum())

    return min(tried, key=lost)
