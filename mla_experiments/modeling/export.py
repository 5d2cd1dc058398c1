"""Which stock model of transformers each of ours is, and back.

Keys and values make a Llama, with biases a Qwen2, with norms of queries and keys a Qwen3, with norms behind attention
and MLP too an OLMo 2, with layers without RoPE a SmolLM3; latents a dense DeepSeek.
Names and shapes of all weights are the same on both sides; `docs/interop.md` lists them.
"""

import contextlib
import copy
from dataclasses import fields
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DeepseekV3Config, PreTrainedConfig, PreTrainedModel

from ..errors import UserError, reason_of
from . import granite
from .attention import ATTENTION
from .attention.checks import COMMON, require
from .attention.hybrid import is_hybrid
from .configuration import DecoderConfig
from .decoder import DecoderForCausalLM

SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps", "initializer_range", "tie_word_embeddings", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
)  # fmt: skip
MLA_FIELDS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
LATENT_MODELS = ("deepseek_v2", "deepseek_v3")
KEYS_AND_VALUES = ("llama", "qwen2", "qwen3", "mistral", "phi3", granite.MODEL, "olmo2", "smollm3")
WINDOWED = ("mistral", "phi3")  # in every layer, where they have a window
TRANSLATED_FIELDS = ("head_dim", "num_key_value_heads", "rope_parameters", "rope_interleave", "first_k_dense_replace")
OF_ONE_MODEL = {  # what only this model has, and is known here
    granite.MODEL: granite.FACTORS, "smollm3": ("no_rope_layers", "no_rope_layer_interval"),
}  # fmt: skip
# what changes no logit of a dense model: training, speed, and experts that are not there
WITHOUT_EFFECT = (
    "attention_dropout", "pretraining_tp", "num_mtp_layers", "output_router_logits", "moe_intermediate_size",
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group", "topk_method",
    "norm_topk_prob", "routed_scaling_factor", "max_window_layers", "embd_pdrop", "resid_pdrop",
    "original_max_position_embeddings",
)  # fmt: skip
# what fields, beside those of a Llama, make it another stock model, and what they are there
BESIDES: dict[str, dict[str, Any]] = {
    "qwen2": {"attention_bias": True}, "qwen3": {"qk_norm": True},
    "olmo2": {"norm_placement": "post", "qk_norm": "whole"},
}  # fmt: skip
OF_LAYERS = {"mistral": "sliding_window", "smollm3": "no_rope_layers"}  # whatever they are
# what transformers itself looks for in any config, declared or not
OF_ANY_MODEL = {
    "quantization_config": None, "sliding_window": None, "attention_chunk_size": None, "layer_types": None,
    "is_causal": True,
}  # fmt: skip


def stock_config(config: DecoderConfig) -> PreTrainedConfig:
    """Return the config of the stock model with the same weights, under the same names, and the same logits.

    The scale of latents (`latent_scale`), which it does not have, is put into their norms: see `with_scale`.

    Raises:
        UserError: there is none: learned positions, Llama in the interleaved rotary layout or of heads that do not
            divide the width, latents without a norm, another mechanism.
    """
    values = {name: getattr(config, name) for name in SHARED_FIELDS}
    values["rope_parameters"] = dict(config.rope_parameters)
    if config.positions != "rope":
        raise UserError(f"positions={config.positions} exists in no stock model; only positions=rope can be exported")
    family = stock_family(config)
    if family == "deepseek_v3":
        kind = DeepseekV3Config
        if not config.attention_options.get("latent_norm", True):
            raise UserError("latent_norm=False exists in no stock model; only latents with their norm can be exported")
        values |= {name: config.attention_options[name] for name in MLA_FIELDS} | {
            "num_key_value_heads": config.num_attention_heads,
            "rope_interleave": config.rope_interleave,
            "first_k_dense_replace": config.num_hidden_layers,  # every layer dense, none of experts
            "attention_bias": config.attention_bias,  # see `stock_biases`
            "num_mtp_layers": 0,
        }
    elif config.rope_interleave:
        raise UserError("rope_interleave=True exists in no stock Llama; only the half-split layout can be exported")
    else:
        kind = CONFIG_MAPPING[family]
        values |= config.attention_options
        if family in OF_LAYERS:
            values[OF_LAYERS[family]] = getattr(config, OF_LAYERS[family])
    try:
        return kind(**values)
    except StrictDataclassError as error:  # a Llama wants heads that divide the width, whatever head_dim is
        raise UserError(
            f"no stock {kind.model_type} is like this model ({reason_of(error)}); it cannot be exported"
        ) from None


def stock_family(config: DecoderConfig) -> str:
    """Return the `model_type` of the stock model with the mechanism of a config and what is common to mechanisms.

    Raises:
        UserError: there is none.
    """
    family = stock_of(config.attention)
    if family is None:
        raise UserError(
            f"attention={config.attention} exists in no stock model; {', '.join(exportable())} can be exported"
        )
    if len(set(config.layer_types or ())) > 1:
        raise UserError("layer_types that differ exist in no stock model that is known here; it cannot be exported")
    if config.layer_options:
        raise UserError("layer_options make layers differ, which those of no stock model do; it cannot be exported")
    plain = {name: None for name in (*COMMON, *OF_LAYERS.values())} | {"norm_placement": "pre"}
    chosen = {name: getattr(config, name) for name in plain if getattr(config, name) not in (plain[name], False)}
    if not chosen or (family == "deepseek_v3" and chosen == {"attention_bias": True}):
        return family
    found = [kind for kind, beside in BESIDES.items() if beside == chosen]
    found += [kind for kind, name in OF_LAYERS.items() if [name] == list(chosen)]
    if family == "llama" and found:
        return found[0]
    said = " and ".join(f"{name}={value}" for name, value in chosen.items())
    raise UserError(f"{said} with attention={config.attention} exists in no stock model; it cannot be exported")


def stock_of(attention: str) -> str | None:
    """Return the `model_type` of the stock model with a mechanism; None where there is none, as of hybrids."""
    return None if is_hybrid(attention) else ATTENTION[attention].stock


def exportable() -> list[str]:
    """Return the names of the mechanisms that have a stock counterpart."""
    return [name for name, mechanism in ATTENTION.items() if mechanism.stock]


def has_stock(config: DecoderConfig) -> bool:
    """Return whether there is a stock model like one of ours."""
    try:
        return bool(stock_config(config))
    except UserError:
        return False


def stock_model(model: DecoderForCausalLM) -> PreTrainedModel:
    """Return the stock model with a copy of the weights of `model`, on its device and in its dtype."""
    stock, weights = AutoModelForCausalLM.from_config(stock_config(model.config)), model.state_dict()
    for name in [name for name in weights if has_scale(name, model.config)]:
        weights[name] = with_scale(name, weights[name], model.config)
    stock.load_state_dict(stock_biases(weights, model.config))
    return stock.to(device=model.device, dtype=model.dtype)


def native_config(stock: PreTrainedConfig) -> DecoderConfig:
    """Return our config of a stock Llama, one of its kin, DeepSeek-V2 or DeepSeek-V3, with the same logits.

    Raises:
        UserError: another architecture, or a feature that our decoder does not have, by its field.
    """
    kind = stock.model_type
    known = (*KEYS_AND_VALUES, *LATENT_MODELS)
    require(
        kind in known,
        f"model_type={kind} has no counterpart here; checkpoints of {', '.join(known)} can be imported",
    )
    refuse_what_differs(stock)
    values = {name: getattr(stock, name) for name in SHARED_FIELDS}
    values["rope_parameters"] = rope_as_built(stock)
    if kind in LATENT_MODELS:
        options = {name: getattr(stock, name) for name in MLA_FIELDS}
        interleaved = kind == "deepseek_v2" or bool(stock.rope_interleave)  # V2 knows no other layout
        values |= {"attention": narrowest(stock, options, "deepseek_v3"), "rope_interleave": interleaved}
        return DecoderConfig(**values, attention_options=options)
    options = {"head_dim": getattr(stock, "head_dim", None), "num_key_value_heads": stock.num_key_value_heads}
    values |= BESIDES.get(kind, {})
    if kind in WINDOWED:
        values["sliding_window"] = stock.sliding_window
    if kind == "smollm3":  # whose list may name more layers than there are
        values["no_rope_layers"] = stock.no_rope_layers[: stock.num_hidden_layers]
    if kind == granite.MODEL:
        values["tie_word_embeddings"] = granite.is_tied(stock)
    return DecoderConfig(**values, attention=narrowest(stock, options, "llama"), attention_options=options)


def rope_as_built(stock: PreTrainedConfig) -> dict:
    """Return the description of RoPE that a stock model turns by.

    A config of before transformers 5 may have `original_max_position_embeddings` beside its RoPE. The model completes
    the description by it as it is built; as the config is read, that is left open.
    """
    built = copy.deepcopy(stock)
    built.standardize_rope_params()
    return built.rope_parameters


def narrowest(stock: PreTrainedConfig, options: dict, family: str) -> str:
    """Return the mechanism of a family that a stock model has: the one whose definition fixes most."""
    names = [name for name in exportable() if ATTENTION[name].stock == family]
    for name in sorted(names, key=lambda name: not ATTENTION[name].fixed_options):
        with contextlib.suppress(UserError):
            ATTENTION[name].resolve(stock.hidden_size, stock.num_attention_heads, **options)
            return name
    return names[0]  # whose own sentence says what cannot be


def refuse_what_differs(stock: PreTrainedConfig) -> None:
    """Name the first field whose value our decoder cannot express.

    A field of the stock config that is known here neither as one of ours nor as without effect must have its default:
    so a field that a later transformers invents is refused where a checkpoint uses it.
    """
    require(
        not getattr(stock, "is_heterogeneous", hasattr(stock, "per_layer_config")),  # before 5.13 a field as any other
        "per_layer_config makes layers differ, which they do not here; it cannot be imported",
    )
    layers = stock.num_hidden_layers
    dense = getattr(stock, "first_k_dense_replace", layers)
    require(
        dense is not None and dense >= layers,
        f"first_k_dense_replace={dense} of num_hidden_layers={layers}: the other layers are mixtures of experts; only "
        "dense checkpoints can be imported",
    )
    own = OF_ONE_MODEL.get(stock.model_type, ())
    known = {*SHARED_FIELDS, *MLA_FIELDS, *TRANSLATED_FIELDS, *WITHOUT_EFFECT, *own}
    declared = {f.name: f.default for f in fields(stock) if f.name in type(stock).__annotations__.keys() - known}
    heads = {"num_key_value_heads": stock.num_attention_heads} if stock.model_type in LATENT_MODELS else {}
    window = {"sliding_window": stock.sliding_window} if stock.model_type in WINDOWED else {}
    for name, value in (declared | OF_ANY_MODEL | heads | window).items():
        found = getattr(stock, name, value)
        if name == "layer_types" and isinstance(found, list | tuple) and set(found) == {"full_attention"}:
            continue  # all layers alike, in other words
        shown = "..." if isinstance(found, dict | list) else found
        require(found == value, f"{name}={shown} is not what a decoder here has ({value}); it cannot be imported")
    partial = stock.rope_parameters.get("partial_rotary_factor", 1.0)
    require(partial == 1.0, f"partial_rotary_factor={partial} is not known here; only heads that turn whole are")


def has_scale(name: str, config: DecoderConfig) -> bool:
    """Return whether what a weight of a model of ours gives, by its name, is multiplied by the scale of latents."""
    scaled = stock_of(config.attention) and config.attention_options.get("latent_scale", False)
    return bool(scaled) and name.endswith(("self_attn.kv_a_layernorm.weight", "self_attn.q_a_layernorm.weight"))


def with_scale(name: str, weight: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """Return the weight of a latent's norm with √(width / rank) in it, for models that do not scale their latents.

    Args:
        name: of the weight, one that `has_scale`.
        weight: `[rank]`.
        config: of the model.
    """
    return weight * (config.hidden_size / weight.shape[0]) ** 0.5


def has_stock_biases(config: DecoderConfig) -> bool:
    """Return whether the stock model has biases in other places than ours, see `stock_biases`."""
    return config.attention_bias and stock_of(config.attention) == "deepseek_v3"


def stock_biases(weights: dict[str, torch.Tensor], config: DecoderConfig) -> dict[str, torch.Tensor]:
    """Return weights with biases where DeepSeek-V3 has them: none of full queries, and one of the output, of zeros.

    Args:
        weights: of a model of ours, by name, or some of them.
        config: of the model.

    Raises:
        UserError: full queries have a bias that is not zero, as of a converted Qwen2.
    """
    if not has_stock_biases(config):
        return weights
    moved = dict(weights)
    for name, weight in weights.items():
        if name.endswith("self_attn.q_proj.bias"):
            if bool(weight.any()):
                raise UserError(f"{name} is not zero, and no stock model with latents has it; it cannot be exported")
            del moved[name]
        elif name.endswith("self_attn.o_proj.weight"):
            moved[name.replace(".weight", ".bias")] = torch.zeros(len(weight), dtype=weight.dtype)
    return moved


def turns(config: DecoderConfig) -> bool:
    """Return whether a model's rotary rows are not yet in the layout that DeepSeek-V3 is written in."""
    return stock_of(config.attention) == "deepseek_v3" and config.positions == "rope" and not config.rope_interleave


def exported_config(config: DecoderConfig) -> PreTrainedConfig:
    """Return the stock config of a model once its rotary rows are turned, if they have to be.

    Raises:
        UserError: as `stock_config`.
    """
    told = {**config.to_dict(), "rope_interleave": True}
    return stock_config(DecoderConfig.from_dict(told) if turns(config) else config)


def has_rotary_rows(name: str) -> bool:
    """Return whether the last rows of every head of a weight of MLA, by its name, are turned by RoPE."""
    module, _, kind = name.rpartition(".")
    turned = tuple(f"self_attn.{part}" for part in ("q_proj", "q_b_proj", "kv_a_proj_with_mqa"))
    return kind in ("weight", "bias") and module.endswith(turned)


def interleaved(name: str, weight: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """Return a weight of MLA with its rotary rows moved from the half-split to the interleaved layout.

    Servers of DeepSeek checkpoints take that layout for granted. Row i of d becomes row 2i, row i + d/2 row 2i + 1.

    Args:
        name: of the weight, one that `has_rotary_rows`.
        weight: `[H · (d_nope + d_R), in]`, or `[d_c + d_R, in]` of the shared key; biases without the last.
        config: of the model.
    """
    rotary = config.attention_options["qk_rope_head_dim"]
    num_heads = 1 if "kv_a_proj_with_mqa." in name else config.num_attention_heads
    rows = weight.unflatten(0, (num_heads, -1))  # [H, rows of a head, in]
    content, turned = rows[:, :-rotary], rows[:, -rotary:]
    order = torch.arange(rotary).view(2, -1).T.flatten()
    return torch.cat((content, turned[:, order]), dim=1).flatten(0, 1)
