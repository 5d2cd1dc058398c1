"""Step 5: the new matrices of each layer fitted to what the original layer gives; no gradient passes through the model.

Layer by layer, from the first: the inputs are those that the layer gets behind the layers already converted, the target
is what brings the residual stream back to where the original has it,

    minimise  Σ_t |x'_t + MLA(norm(x'_t)) - (x_t + attention(norm(x_t)))|²,

x of the original, x' of the converted model: so a layer also mends what those before it lost, as in GPTQ
(Frantar et al. 2022). Every position counts by the inverse of its mean target's square: the first token's is a hundred
times as large as all others' in models with attention sinks.

Adam takes steps of the size of a parameter, so the parameters are put in a form in which one size fits: inputs whitened
(W h = W C^½ C^-½ h), latents and rotary keys in unit variance (`latent_maps.in_unit_variance`).
"""

import dataclasses
from collections.abc import Iterator

import torch

from ..kernels import attend
from ..modeling import DecoderForCausalLM
from ..modeling.attention.heads import merge_heads
from ..modeling.attention.rope import rotate
from .joint_rank import roots
from .latent_maps import LatentMaps, in_unit_variance

Tensor = torch.Tensor
LEARNING_RATE = 0.01  # of a matrix, in parts of the root mean square of its entries
BETAS = (0.9, 0.95)
WARMUP = 5  # steps
FITTED = ("latent", "key_up", "value_up", "content_queries", "rotary_queries", "rotary_key", "output")
READ = ("latent", "content_queries", "rotary_queries", "rotary_key")  # those that read the inputs


def output_of(maps: LatentMaps, rows: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return what a layer of these maps gives, `[B, T, D]`, in their dtype.

    Args:
        maps: of the layer.
        rows: its inputs, `[B, T, E]`.
        rotation: cosines and sines, `[1, T, d_R / 2]`.
    """
    rows = rows.unsqueeze(1)  # [B, 1, T, E]
    latent = rows @ maps.latent.T  # [B, 1, T, r]
    queries = [
        rows @ maps.content_queries.transpose(1, 2),
        rotate(rows @ maps.rotary_queries.transpose(1, 2), rotation, False),
    ]
    turned = rotate(rows @ maps.rotary_key.T, rotation, False).expand(-1, len(maps.key_up), -1, -1)  # [B, H, T, d_R]
    query = torch.cat(queries, dim=-1)  # [B, H, T, d_n + d_R]
    key = torch.cat((latent @ maps.key_up.transpose(1, 2), turned), dim=-1)
    value = latent @ maps.value_up.transpose(1, 2)  # [B, H, T, d_v]
    return merge_heads(attend(query, key, value, None, 1.0)) @ maps.output.T


def fitted(
    maps: LatentMaps,
    inputs: Tensor,
    targets: Tensor,
    rotation: tuple[Tensor, Tensor],
    steps: int,
    batch: int,
    seed: int,
) -> LatentMaps:
    """Return the maps of one layer after so many steps of Adam towards what it should give.

    Args:
        maps: where to begin.
        inputs: `[N, T, E]`.
        targets: `[N, T, D]`.
        rotation: cosines and sines, `[1, T, d_R / 2]`.
        steps: how many.
        batch: windows in a step.
        seed: of the order of the windows.
    """
    covariance = torch.einsum("nti,ntj->ij", inputs.double(), inputs.double()) / inputs.shape[:2].numel()
    root, inverse = roots(covariance)
    maps = in_unit_variance(maps, covariance)
    whitened = {name: getattr(maps, name) @ root if name in READ else getattr(maps, name) for name in FITTED}
    parameters = {name: matrix.float().requires_grad_(True) for name, matrix in whitened.items()}
    inputs = inputs @ inverse.float()
    importance = targets.square().sum(2, keepdim=True).mean(0).clamp(min=1e-12).reciprocal()  # [T, 1]
    groups = [{"params": [p], "size": float(p.detach().square().mean().sqrt())} for p in parameters.values()]
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=BETAS)
    with torch.enable_grad():
        for step, chosen in enumerate(batches(len(inputs), batch, steps, seed)):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * group["size"] * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
            made = output_of(LatentMaps(**parameters), inputs[chosen], rotation)
            loss = ((made - targets[chosen]).square() * importance).sum(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = {name: parameter.detach().double() for name, parameter in parameters.items()}
    return dataclasses.replace(maps, **{name: m @ inverse if name in READ else m for name, m in found.items()})


def batches(windows: int, size: int, count: int, seed: int) -> Iterator[Tensor]:
    """Yield `count` batches of the numbers of windows, each window once before any a second time."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(count):
        while len(waiting) < size:
            waiting = torch.cat((waiting, torch.randperm(windows, generator=generator)))
        yield waiting[:size]
        waiting = waiting[size:]


def fitted_layers(
    model: DecoderForCausalLM, layers: list[LatentMaps], windows: Tensor, frequencies: Tensor, steps: int, batch: int
) -> Iterator[LatentMaps]:
    """Yield the maps of every layer, fitted in turn.

    Args:
        model: the original.
        layers: the converted layers.
        windows: `[N, T]` token ids of calibration text.
        frequencies: ω of the rotary pairs, `[d_R / 2]`.
        steps: of each layer.
        batch: windows in a step.
    """
    decoder = model.model
    places = torch.arange(windows.shape[1]).unsqueeze(0)
    original = torch.cat([decoder.embed_tokens(row.unsqueeze(0)) for row in windows])
    turned = decoder.rotary_emb(places, original.dtype)
    angles = places.unsqueeze(2) * frequencies
    rotation = (angles.cos(), angles.sin())
    converted = original.clone()
    for number, (block, maps) in enumerate(zip(decoder.layers, layers, strict=True)):
        for row in original:
            row += block.self_attn(block.input_layernorm(row.unsqueeze(0)), turned)[0]
        inputs = block.input_layernorm(converted)
        if block.self_attn.attention_bias:
            inputs = torch.nn.functional.pad(inputs, (0, 1), value=1.0)
        maps = fitted(maps, inputs, original - converted, rotation, steps, batch, seed=number)
        yield maps
        single = LatentMaps(**{name: getattr(maps, name).float() for name in FITTED})
        for row, given in zip(converted, inputs, strict=True):
            row += output_of(single, given.unsqueeze(0), rotation)[0]
        for stream in (original, converted):
            for row in stream:
                row += block.mlp(block.post_attention_layernorm(row.unsqueeze(0)))[0]
