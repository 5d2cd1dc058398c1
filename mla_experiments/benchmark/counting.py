"""What a stock decoder of transformers costs, counted from the model itself, built and run without numbers.

Parameters are those of the model on torch's meta device. Two tokens are read and one more is decoded there: what the
cache holds then says what a token takes, layer by layer, and torch's counter says what a step multiplies. That must be
what the shapes of the weights make of it; a model of which it is not (layers that are looped over or shared, parts that
read images) is refused by name.
"""

import contextlib
import copy
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)
from transformers.utils import logging

from ..errors import UserError, reason_of
from ..modeling.attention.checks import require
from .stock import Layers, StockArchitecture

READ = 2  # tokens in the cache when a step is counted
SHORTEST = 16  # a window in which all tokens that are counted with fit
AGREEMENT = 0.05  # between the counter and the shapes; what is not a product with a weight is within it
GROWING = (
    DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)  # fmt: skip
EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


def stock_architecture(config: PreTrainedConfig, tied: bool, nested: bool = False) -> StockArchitecture:
    """Return what the stock model of a text decoder's config costs.

    Args:
        config: of the decoder alone; it is left as it is.
        tied: whether the output projection is the embedding; the config of the whole model decides it.
        nested: whether it was found in the config of a model of more than text.

    Raises:
        UserError: no decoder, or one of which this cannot be said, by its model_type.
    """
    config = copy.deepcopy(config)
    config.quantization_config = None  # says how numbers are stored, not how many there are
    config.tie_word_embeddings, config.return_dict = tied, True
    check_attention(config)
    try:
        with quiet():
            model = skeleton_of(config, nested)
            cache = tokens_read(model)
            check_cache(config, cache)
            return costs_of(config, model, cache)
    except UserError:
        raise
    except Exception as error:  # whatever a stock model may raise about a config that it was not made for
        raise refusal(config, error) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what stock models say to themselves, and distributions from looking at numbers: only shapes are there."""
    level, checked = logging.get_verbosity(), Distribution._validate_args
    logging.set_verbosity(logging.CRITICAL)
    Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        Distribution.set_default_validate_args(checked)


def check_attention(config: PreTrainedConfig) -> None:
    """Refuse attention that chooses its tokens: what it reads and multiplies no cache and no counter shows."""
    for name, value in config.to_dict().items():
        if name.startswith("index_topk") and value:
            raise UserError(
                f"model_type={config.model_type} cannot be planned: {name}={value} attends to chosen tokens only"
            )


def refusal(config: PreTrainedConfig, error: Exception) -> UserError:
    """Return a sentence for what a stock model raised: that it is an encoder, or the line of it that failed."""
    kind = f"model_type={config.model_type}"
    if getattr(config, "is_decoder", None) is False:
        return UserError(f"{kind} with is_decoder=False is an encoder; decoders of text can be planned")
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f" in `{frame.line}`" for frame in reversed(frames) if "models" in Path(frame.filename).parts), "")
    return UserError(
        f"{kind} cannot be planned: its stock model cannot be built or run from this config ({reason_of(error)}{line})"
    )


def skeleton_of(config: PreTrainedConfig, nested: bool) -> PreTrainedModel:
    """Return the stock model without memory for its weights; without an output projection where there is no such kind.

    Raises:
        UserError: no model of text.
    """
    of_text = nested or getattr(config, "base_config_key", "") == "text_config"
    kinds = (AutoModelForCausalLM, AutoModel) if of_text else (AutoModelForCausalLM,)
    kinds = [kind for kind in kinds if type(config) in kind._model_mapping]
    require(
        bool(kinds) and hasattr(config, "vocab_size"),
        f"model_type={config.model_type} is no language model of transformers; decoders of text can be planned",
    )
    with torch.device("meta"):  # and of experts, multiply by those of a token only
        options = {"attn_implementation": "eager", "experts_implementation": "batched_mm", "dtype": torch.float32}
        model = kinds[0].from_config(config, **options).eval()
    model.config.pad_token_id = None  # some would look for padding, which takes numbers
    return model


@torch.no_grad()
def tokens_read(model: PreTrainedModel) -> Any:
    """Return the cache of two tokens, or None where the model keeps none."""
    with torch.device("meta"):
        return model(input_ids=torch.zeros(1, READ, dtype=torch.long), use_cache=True).get("past_key_values")


@torch.no_grad()
def step_flops(model: PreTrainedModel, cache: DynamicCache) -> int:
    """Return the FLOPs of decoding one more token, which enters the cache."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, past_key_values=cache)
    return counter.get_total_flops()


def check_cache(config: PreTrainedConfig, cache: Any) -> None:
    """Refuse a model that keeps nothing, or keeps it in a way whose growth is not known here.

    Raises:
        UserError: by its model_type, and the field that makes it so where there is one.
    """
    kind = f"model_type={config.model_type}"
    if cache is None:
        raise UserError(f"{kind} keeps no cache of a text that transformers shows; decoders of text can be planned")
    require(type(cache) is DynamicCache, f"{kind} keeps a {type(cache).__name__}, whose growth is not known here")
    require(any(map(kept_by, cache.layers)), f"{kind} keeps nothing of a text; decoders of text can be planned")
    for number, layer in enumerate(cache.layers):
        filled = bool(kept_by(layer))
        require(
            type(layer) in (*GROWING, LinearAttentionLayer) or not filled,
            f"layer {number} of {kind} keeps a {type(layer).__name__}, whose growth is not known here",
        )
        require(
            type(layer) not in GROWING or filled,
            f"layer {number} of {kind} keeps nothing of a text: it attends to something else, and cannot be planned",
        )
        require(
            (window_of(layer) or SHORTEST) >= SHORTEST,
            f"sliding_window={window_of(layer)} of {kind} is too short to be planned; at least {SHORTEST} can be",
        )


def costs_of(config: PreTrainedConfig, model: PreTrainedModel, cache: DynamicCache) -> StockArchitecture:
    """Return the costs of a model, from its shapes and from a step of it, where the two agree.

    Raises:
        UserError: they do not.
    """
    embeddings = {id(part.weight): part.weight.numel() for part in model.modules() if isinstance(part, nn.Embedding)}
    output = model.get_output_embeddings()
    if output is not None:
        embeddings.pop(id(output.weight), None)
    parameters, tables, idle = model.num_parameters(), sum(embeddings.values()), idle_weights(config, model)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1) - tables - idle
    flops = step_flops(model, cache)
    layers = list(groups(config, model, cache, flops))
    check_step(config, flops, 2 * weights + sum(map(attending_flops, layers)), 2 * idle)
    if output is None:  # only a part of a model of text and images has been built; its head is a matrix
        head = config.vocab_size * config.hidden_size
        tables, parameters = (tables - head, parameters) if config.tie_word_embeddings else (tables, parameters + head)
        weights += head
    states = [state.numel() for layer in cache.layers for state in states_of(layer)]
    longest = getattr(config, "max_position_embeddings", None)
    return StockArchitecture(
        name=config.model_type,
        parameters=parameters,
        active_parameters=parameters - idle,
        tables=tables,
        weights=weights,
        layers=tuple(layers),
        state=sum(states),
        num_layers=len(cache.layers),
        longest=longest if isinstance(longest, int) and longest > 0 else None,
    )


def attending_flops(layers: Layers) -> int:
    """Return what attending takes in the step that is counted, beyond expanding the new token, which is done once."""
    return (READ + 1) * layers.training_flops + READ * layers.expansion


def check_step(config: PreTrainedConfig, found: int, expected: int, idle: int) -> None:
    """Refuse a model of which a step does not multiply by each weight once.

    Raises:
        UserError: by its model_type, with both numbers.
    """
    agree = any(abs(found - sought) <= AGREEMENT * sought for sought in (expected, expected + idle))
    require(  # a stock model may multiply by all experts and weigh most of the products with nothing
        agree,
        f"model_type={config.model_type} cannot be planned: a step of its stock model takes {found / 1e9:.4g} GFLOP, "
        f"its weights make {expected / 1e9:.4g}; weights are used more than once, or never by text",
    )


def idle_weights(config: PreTrainedConfig, model: PreTrainedModel) -> int:
    """Return how many weights of experts a token leaves aside.

    Raises:
        UserError: experts, and no known field that says how many of them a token has.
    """
    idle = 0
    for name, part in model.named_modules():
        if name.split(".")[-1] != "experts":
            continue
        size = sum(weight.numel() for weight in part.parameters())
        number = len(part) if isinstance(part, nn.ModuleList) else next(part.parameters()).shape[0]
        chosen = next((getattr(config, field) for field in EXPERTS_OF_A_TOKEN if getattr(config, field, None)), None)
        require(
            isinstance(chosen, int) and 0 < chosen <= number,
            f"model_type={config.model_type} has {number} experts and gives {chosen} to a token "
            f"({' or '.join(EXPERTS_OF_A_TOKEN)}); it cannot be planned",
        )
        idle += size - size * chosen // number
    return idle


def groups(config: PreTrainedConfig, model: PreTrainedModel, cache: DynamicCache, before: int) -> Iterator[Layers]:
    """Yield the layers whose cache grows, by window; attending to a token costs what it adds to a step.

    Args:
        config: of the model.
        model: on the meta device.
        cache: of its tokens so far; more enter.
        before: FLOPs of the last step.
    """
    alike: dict[tuple[int | None, bool], list[Any]] = {}  # layers by window, and whether they keep latents
    for layer in cache.layers:
        if type(layer) in GROWING:
            alike.setdefault((window_of(layer), is_latent(config, layer)), []).append(layer)
    more = []  # FLOPs that a step gains where these layers see two tokens more and the others one
    for layers in alike.values():
        for layer in layers:
            layer.update(layer.keys[:, :, :1], layer.values[:, :, :1])
        step = step_flops(model, cache)
        more.append(step - before)
        before = step
    of_all = sum(more) // (len(more) + 1)
    for (window, latent), gained in zip(alike, more, strict=True):
        layers = alike[window, latent]
        numbers = sum(kept.shape[1] * kept.shape[3] for layer in layers for kept in (layer.keys, layer.values))
        flops = gained - of_all
        costs = latent_costs(config, len(layers), flops) if latent else (flops, flops, 0)
        yield Layers(len(layers), numbers, window, *costs)


def latent_costs(config: PreTrainedConfig, count: int, found: int) -> tuple[int, int, int]:
    """Return the FLOPs of attending to a token's latent, of attending to it expanded, and of expanding it.

    Args:
        config: of a model with multi-head latent attention.
        count: of such layers.
        found: what a token of context adds to a step of the stock model, which expands.

    Raises:
        UserError: the widths in the config do not make what has been found.
    """
    content, rotary, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    heads, rank = 2 * count * config.num_attention_heads, config.kv_lora_rank
    scores, expansion = heads * (content + rotary + value), heads * rank * (content + value)
    require(
        abs(found - scores - expansion) <= AGREEMENT * found,
        f"model_type={config.model_type} cannot be planned: its qk_nope_head_dim={content}, qk_rope_head_dim={rotary}, "
        f"v_head_dim={value} and kv_lora_rank={rank} are not all that its latents are attended with",
    )
    return heads * (2 * rank + rotary), scores, expansion


def is_latent(config: PreTrainedConfig, layer: Any) -> bool:
    """Whether a layer of a cache keeps latents of multi-head latent attention in place of keys."""
    return layer.keys.shape[1] == 1 and layer.keys.shape[3] == getattr(config, "kv_lora_rank", None)


def window_of(layer: object) -> int | None:
    """Return how many tokens a layer of a cache keeps at most; None where it keeps all."""
    return getattr(layer, "sliding_window", None)


def states_of(layer: object) -> list[torch.Tensor]:
    """Return what a layer of a cache keeps of a sequence of any length."""
    states = (getattr(layer, name, None) or {} for name in ("conv_states", "recurrent_states"))
    return [state for kind in states for state in kind.values() if state is not None]


def kept_by(layer: object) -> list[torch.Tensor]:
    """Return all tensors that a layer of a cache holds."""
    held = (getattr(layer, name, None) for name in ("keys", "values"))
    return [tensor for tensor in held if tensor is not None] + states_of(layer)
