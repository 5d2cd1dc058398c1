"""MLA of a wider latent and rotary key, and the same logits: for kernels that are built for DeepSeek's 512 + 64.

What is added is zeros. Three things follow: the norm of a latent divides by the mean over more numbers, so its weight
takes √(d_c / d_c'); rotary pair i turns by θ^(-2i / d_R), which in the wider rotation is pair i · d_R' / d_R; and
scores are divided by √(d_nope + d_R'), so queries take √((d_nope + d_R') / (d_nope + d_R)).
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...errors import UserError, reason_of
from ..attention.checks import require
from ..configuration import DecoderConfig
from ..conversion import read_config, save_around_weights, shapes_of
from ..export import has_scale, stock_of, with_scale
from ..shards import WEIGHTS, checked_shards

KEPT_FREQUENCIES = ("default", "linear", "llama3")  # of which each depends on itself alone, not on how many there are


def widen(source: Path, target: Path, rank: int, rotary: int) -> None:
    """Write an MLA model of ours with another d_c and d_R, as a model of ours, into a folder that is there.

    Args:
        source: folder of the model.
        target: folder to fill.
        rank: the new d_c.
        rotary: the new d_R.

    Raises:
        UserError: another mechanism, widths that cannot hold the model's, or a rotation whose frequencies would change.
    """
    config = read_config(source)
    name = getattr(config, "attention", config.model_type)
    if not isinstance(config, DecoderConfig) or stock_of(name) != "deepseek_v3":
        raise UserError(f"widths={rank} {rotary} are of latents, which {name} has not; leave them out")
    options = config.attention_options
    require(not config.layer_options, "layer_options make latents differ by layer; they cannot be widened to one width")
    check_widths(config, rank, rotary)
    widened = DecoderConfig.from_dict(
        {
            **config.to_dict(),
            "attention_options": {**options, "kv_lora_rank": rank, "qk_rope_head_dim": rotary, "latent_scale": False},
        }
    )
    weights = {}
    for shard in checked_shards(source, shapes_of(config)):
        with safe_open(shard, "pt") as file:
            for name in shapes_of(config).keys() & set(file.keys()):
                weight = file.get_tensor(name)
                weight = with_scale(name, weight, config) if has_scale(name, config) else weight
                weights[name] = wider(name, weight, config, rank, rotary).contiguous()
    try:
        save_file(weights, target / WEIGHTS, {"format": "pt"})
    except Exception as error:  # how safetensors says that the disk is full
        raise UserError(f"{target} cannot be written ({reason_of(error)}); choose another place") from None
    save_around_weights(source, target, widened)


def check_widths(config: DecoderConfig, rank: int, rotary: int) -> None:
    """Refuse widths that cannot hold a model's latent and rotary key.

    Raises:
        UserError: see there.
    """
    own = config.attention_options["kv_lora_rank"], config.attention_options["qk_rope_head_dim"]
    said = f"widths={rank} {rotary} cannot hold a latent of {own[0]} and a rotary key of {own[1]}"
    require(rank >= own[0], f"{said}; give at least {own[0]} for the latent")
    require(own[1] > 0 and rotary % own[1] == 0, f"{said}; give a multiple of {own[1]} for the rotary key")
    kind = config.rope_parameters["rope_type"]
    require(
        rotary == own[1] or kind in KEPT_FREQUENCIES,
        f"widths={rank} {rotary} would change the frequencies of rope_type={kind}; keep {own[1]} for the rotary key",
    )


def wider(name: str, weight: torch.Tensor, config: DecoderConfig, rank: int, rotary: int) -> torch.Tensor:
    """Return a weight of the wider model; those that know no latent stay as they are."""
    options = config.attention_options
    old_rank, old_rotary, content = (options[key] for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"))
    layout = config.rope_interleave
    if name.endswith("kv_a_proj_with_mqa.weight"):
        latent, turned = weight.split((old_rank, old_rotary))
        return torch.cat((padded(latent, 0, rank), spread(turned, rotary, layout)))
    if name.endswith("kv_a_layernorm.weight"):
        return padded(weight * (old_rank / rank) ** 0.5, 0, rank)
    if name.endswith("kv_b_proj.weight"):
        return padded(weight, 1, rank)
    if name.endswith(("self_attn.q_proj.weight", "self_attn.q_b_proj.weight")):
        heads = weight.unflatten(0, (config.num_attention_heads, -1))
        heads = heads * ((content + rotary) / (content + old_rotary)) ** 0.5
        kept, turned = heads.split((content, old_rotary), dim=1)
        turned = torch.stack([spread(head, rotary, layout) for head in turned])
        return torch.cat((kept, turned), dim=1).flatten(0, 1)
    return weight


def padded(weight: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Return a weight with zeros behind it, up to a size of a dimension."""
    shape = list(weight.shape)
    shape[dim] = size - shape[dim]
    return torch.cat((weight, weight.new_zeros(shape)), dim=dim)


def spread(rows: torch.Tensor, rotary: int, interleaved: bool) -> torch.Tensor:
    """Return rotary rows `[d_R, in]` as `[d_R', in]`: each pair where the wider rotation has its frequency."""
    half, apart = rows.shape[0] // 2, rotary // rows.shape[0]
    pairs = rows.view(half, 2, -1) if interleaved else rows.view(2, half, -1).transpose(0, 1)
    wide = rows.new_zeros(rotary // 2, 2, rows.shape[1])
    wide[::apart][:half] = pairs
    return (wide if interleaved else wide.transpose(0, 1)).flatten(0, 1)
