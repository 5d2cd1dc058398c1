"""From keys and values to latents: a decoder of MHA, MQA or GQA becomes one of MLA, in named steps.

    stacked        the keys and values of all groups are one latent and one rotary key              exact
    concentrated   rotary components in the order of what queries read of them                      exact
    rope left off  only the first components turn, what the rest holds becomes content              loses
    low rank       key content and values from one latent of few numbers                            loses
    queries        from a latent of their own, if asked for                                         loses
    fitted         each layer anew for what it gets in the converted model, mended by least squares mends
    constant       a channel that makes the norm of stock DeepSeek-V3 without effect                exact

Layers are passed one after another. What is kept of each is its moments and its own maps, whatever the text's length,
so that several budgets come of one pass.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm import tqdm

from ..errors import UserError
from ..modeling import DecoderConfig, DecoderForCausalLM
from ..modeling.attention import ATTENTION
from ..modeling.attention.checks import require
from ..modeling.attention.hybrid import is_hybrid
from ..modeling.attention.rope import RotaryEmbedding
from .choosing import Studied, best_constants, best_split, converted, kept_of, pairs_in_order, study_of
from .constant_channel import Norms, with_constant
from .latent_maps import LatentMaps, weights_of
from .layer_fit import refitted_layers
from .low_rank_queries import with_query_rank
from .moments import layer_inputs
from .ranks import ranks_of
from .rotary_part import without_rope

Tensor = torch.Tensor
T = TypeVar("T")
MADE = "mla"  # what is made of others
ANGLES = ("default", "linear", "llama3", "yarn")  # types of RoPE whose angles do not change with the sequence
OF_LATENTS = ("mscale_all_dim",)  # in a description of RoPE, what scales scores of latents and those of no keys
UNCHANGED = ("default", "linear", "llama3")  # those that also leave cosines and sines as they are
OF_ATTENTION = (
    "attention", "attention_options", "attention_source", "attention_bias", "rope_parameters", "rope_interleave",
    "layer_options", "layer_types", "architectures", "model_type", "set_by_others",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What a token and layer caches: a latent of `rank` numbers, and a rotary key of two for each component that turns.

    Attributes:
        rank: d_c, without the constant channel.
        kept: how many components of each frequency turn.
        by_layer: whether each layer has a rank of its own, see `ranks`; `rank` is their mean.
    """

    rank: int
    kept: tuple[int, ...]
    by_layer: bool = False

    @property
    def rotary(self) -> int:
        """d_R."""
        return 2 * sum(self.kept)


@dataclass(frozen=True)
class OneByOne:
    """The maps of layers, each made when it is passed and then let go: those of full size take several models' memory.

    Attributes:
        make: makes those of a layer of what is known of it.
        known: that, of each layer.
    """

    make: Callable[..., LatentMaps]
    known: list[tuple]

    def __iter__(self) -> Iterator[LatentMaps]:
        return itertools.starmap(self.make, self.known)


@dataclass(frozen=True)
class Converted:
    """A model after a step.

    Attributes:
        step: its name.
        layers: the maps of each layer, which can be passed more than once.
        kept: see `Size`.
        norms: weights of each layer's norms where there is a constant channel; None for no norm.
    """

    step: str
    layers: Iterable[LatentMaps]
    kept: tuple[int, ...]
    norms: list[Norms] | None = None


def check_convertible(config: DecoderConfig) -> None:
    """Refuse what cannot become MLA exactly, by its field.

    Raises:
        UserError: no keys and values with RoPE in every layer, norms of queries and keys or behind attention, a gate,
            windows, or angles that change.
    """
    name = config.attention
    keeps = not is_hybrid(name) and ATTENTION[name].stock == "llama"
    require(keeps, f"attention={name} is not to be converted: that is for keys and values of MHA, GQA or MQA")
    require(config.positions == "rope", f"positions={config.positions} cannot be converted; only positions=rope can")
    said = f"qk_norm={config.qk_norm} cannot be converted: a norm stands between the latent and the keys"
    require(not config.qk_norm, said)
    for name, usual in (("norm_placement", "pre"), ("no_rope_layers", None), ("layer_options", None)):
        value = getattr(config, name)
        require(value == usual, f"{name}={value} cannot be converted; no stock MLA has it")
    require(not config.output_gate, f"output_gate={config.output_gate} cannot be converted; no stock MLA has a gate")
    require(
        config.sliding_window is None,
        f"sliding_window={config.sliding_window} cannot be converted; no stock MLA sees a window",
    )
    kind = config.rope_parameters["rope_type"]
    require(kind in ANGLES, f"rope_type={kind} cannot be converted: its angles change with the length of the sequence")


def cached_numbers(config: DecoderConfig) -> int:
    """Return how many numbers a token and layer of the original caches, 2 G d_h."""
    return 2 * config.attention_options["num_key_value_heads"] * config.attention_options["head_dim"]


def check_numbers(config: DecoderConfig, numbers: int, constant: bool, asked: str) -> None:
    """Refuse a size below one rotary pair and a latent of one number, or above the original's.

    Args:
        config: of the original.
        numbers: of a token and layer.
        constant: whether one of them is the constant channel.
        asked: how it was asked for, for the sentence.

    Raises:
        UserError: it is.
    """
    least, most = 3 + constant, cached_numbers(config) + constant
    if not least <= numbers <= most:
        raise UserError(
            f"{asked} is {numbers:,} numbers a token and layer; one rotary pair and a latent of one take {least}, the "
            f"original {most:,}: choose between them"
        )


@torch.no_grad()
def studied(model: DecoderForCausalLM, windows: Tensor, of_queries: bool = False) -> list[Studied]:
    """Return what calibration text says of every layer, one after another.

    Args:
        model: the original, in single precision.
        windows: `[N, T]` token ids.
        of_queries: whether queries are to be of low rank.

    Raises:
        UserError: activations that are not finite.
    """
    frequencies, factor = angles_of(model)
    passed = told(layer_inputs(model, windows), "calibration text", model.config.num_hidden_layers)
    return [study_of(*layer, frequencies, factor, of_queries) for layer in passed]


def told(layers: Iterable[T], what: str, count: int) -> Iterable[T]:
    """Return layers, whose number is told while they are passed: of a large model each takes a while."""
    return tqdm(layers, what, count, leave=False, unit=" layers")


def angles_of(model: DecoderForCausalLM) -> tuple[Tensor, float]:
    """Return ω `[F]` of the original, and the factor on its cosines and sines."""
    rotary = model.model.rotary_emb
    return rotary.inv_freq.double(), rotary.attention_factor


def size_for(model: DecoderForCausalLM, layers: list[Studied], numbers: int, constant: bool) -> Size:
    """Return the best split of so many numbers a token and layer between rotary key and latent."""
    if numbers - constant >= cached_numbers(model.config):
        return full_size(model.config)
    kept = best_split(layers, angles_of(model)[0], numbers - constant)
    return Size(numbers - constant - 2 * sum(kept), tuple(kept))


def check_parts(config: DecoderConfig, rank: int, rotary: int, constant: bool) -> None:
    """Refuse a rotary key that has no pairs, or more than the keys of all groups, and a latent of nothing.

    Raises:
        UserError: it is.
    """
    most = cached_numbers(config) // 2
    require(
        2 <= rotary <= most and rotary % 2 == 0,
        f"qk_rope_head_dim={rotary} must be even, from 2 to {most}, the width of all keys.",
    )
    require(rank > constant, f"kv_lora_rank={rank} must be at least {1 + constant}.")


def check_query_rank(config: DecoderConfig, rank: int, constant: bool) -> None:
    """Refuse a latent of queries of nothing, or of more numbers than what it is made of.

    Raises:
        UserError: it is.
    """
    least, most = 1 + constant, config.hidden_size + config.attention_bias + constant
    said = f"q_lora_rank={rank} must lie between {least} and {most}, what queries are made of; or leave it out."
    require(least <= rank <= most, said)


def size_of(layers: list[Studied], rank: int, rotary: int, constant: bool) -> Size:
    """Return the size that was asked for by `kv_lora_rank` and `qk_rope_head_dim`."""
    pairs = pairs_in_order(layers)[: rotary // 2]
    return Size(rank - constant, tuple(kept_of(pairs, len(layers[0].energy))))


def full_size(config: DecoderConfig) -> Size:
    """Return the size at which nothing is lost."""
    groups, width = (config.attention_options[name] for name in ("num_key_value_heads", "head_dim"))
    return Size(groups * width, (groups,) * (width // 2))


@torch.no_grad()
def steps(
    model: DecoderForCausalLM,
    layers: list[Studied],
    size: Size,
    windows: Tensor,
    constant: bool,
    fit: bool,
    query_rank: int | None = None,
) -> Iterator[Converted]:
    """Yield the model after each step.

    Args:
        model: the original.
        layers: what is known of them.
        size: to convert to.
        windows: `[N, T]`, calibration text.
        constant: whether to make the norm of stock DeepSeek-V3 without effect; otherwise there is no norm.
        fit: whether layers are fitted along the converted model.
        query_rank: of the queries' latents, without the constant channel; None for full queries.
    """
    (frequencies, _), count = angles_of(model), len(layers)
    whole = full_size(model.config).kept
    made: Iterable[LatentMaps]
    made = OneByOne(without_rope, [(layer.maps, list(whole), layer.mean_rotation) for layer in layers])
    yield Converted("stacked, concentrated", made, whole)
    kept = list(size.kept)
    if size != full_size(model.config):
        constants = [best_constants(layer, kept, size.rank, frequencies) for layer in told(layers, "constants", count)]
        ranks = ranks_of(layers, constants, kept, size.rank) if size.by_layer else [size.rank] * len(layers)
        own = list(zip(layers, constants, ranks, strict=True))
        left_off = OneByOne(converted, [(layer, kept, None, c) for layer, c, _ in own])
        yield Converted("rope left off", left_off, size.kept)
        made = [converted(layer, kept, rank, c) for layer, c, rank in told(own, "low rank", count)]
        yield Converted("low rank", made, size.kept)
    if query_rank is not None:
        made = [with_query_rank(maps, query_rank, layer.moments) for maps, layer in zip(made, layers, strict=True)]
        yield Converted("queries of low rank", made, size.kept)
    if fit and size != full_size(model.config):
        made = list(told(refitted_layers(model, constants, kept, ranks, windows, query_rank), "fitting", count))
        yield Converted("fitted", made, size.kept)
    if constant:
        both = [with_constant(maps, layer.inputs) for maps, layer in zip(made, layers, strict=True)]
        yield Converted("constant channel", [maps for maps, _ in both], size.kept, [norm for _, norm in both])


def config_of(
    original: DecoderConfig, made: Converted, one: LatentMaps, ranks: list[int], frequencies: Tensor
) -> DecoderConfig:
    """Return the configuration of a converted model.

    Args:
        original: that of the original.
        made: the converted model.
        one: the maps of a layer; all are as wide, but for their ranks.
        ranks: of all.
        frequencies: ω, `[F]`.
    """
    values = {name: value for name, value in original.to_dict().items() if name not in OF_ATTENTION}
    options = {
        "kv_lora_rank": round(sum(ranks) / len(ranks)), "qk_nope_head_dim": one.content_queries.shape[1],
        "qk_rope_head_dim": one.rotary, "v_head_dim": one.value_up.shape[1], "latent_norm": made.norms is not None,
        "q_lora_rank": None if one.query_latent is None else len(one.query_latent),
    }  # fmt: skip
    return DecoderConfig(
        **values,
        attention=MADE,
        attention_options=options,
        layer_options=[{"kv_lora_rank": rank} for rank in ranks] if len(set(ranks)) > 1 else None,
        attention_bias=one.latent.shape[1] > original.hidden_size,
        rope_parameters=rope_of(original, made.kept, frequencies),
    )


def rope_of(original: DecoderConfig, kept: tuple[int, ...], frequencies: Tensor) -> dict:
    """Return the description of RoPE whose pairs turn as those that are kept.

    Where each frequency has one, it is the original's. Otherwise each pair's angle is stated: transformers' "longrope"
    divides the angles of the default by a factor for each pair, here one list for sequences of all lengths.
    """
    described = original.rope_parameters
    if set(kept) == {1} and described["rope_type"] in UNCHANGED:
        return {name: value for name, value in described.items() if name not in OF_LATENTS}
    turning = frequencies.double().repeat_interleave(torch.tensor(kept))
    pairs, base = len(turning), described["rope_theta"]
    default = base ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    factors = (default / turning).tolist()
    return {
        "rope_type": "longrope", "rope_theta": base, "short_factor": factors, "long_factor": factors, "factor": 1.0,
        "original_max_position_embeddings": original.max_position_embeddings, "attention_factor": 1.0,
    }  # fmt: skip


def norms_of(maps: LatentMaps, norms: Norms, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a layer's norms, by their names in it."""
    weights = {"kv_a_layernorm.weight": torch.full((maps.rank,), norms.latent, dtype=dtype)}
    if maps.query_latent is not None and norms.queries is not None:
        weights["q_a_layernorm.weight"] = torch.full((len(maps.query_latent),), norms.queries, dtype=dtype)
    return weights


def model_of(original: DecoderForCausalLM, made: Converted) -> DecoderForCausalLM:
    """Return a converted model; all weights outside attention are the original's own, not copies.

    Args:
        original: the model that was converted.
        made: its layers.
    """
    weights = {name: weight for name, weight in original.state_dict().items() if ".self_attn." not in name}
    ranks = []
    for number, maps in enumerate(made.layers):
        ranks.append(maps.rank)
        own = weights_of(maps, original.dtype)
        if made.norms is not None:
            own |= norms_of(maps, made.norms[number], original.dtype)
        weights |= {f"model.layers.{number}.self_attn.{name}": weight for name, weight in own.items()}
    config = config_of(original.config, made, maps, ranks, angles_of(original)[0])
    with torch.device("meta"):
        model = DecoderForCausalLM(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    rotary = RotaryEmbedding(config.attention_options["qk_rope_head_dim"], config.rope_parameters,
                             config.max_position_embeddings)  # fmt: skip
    model.model.rotary_emb = rotary  # its buffers were made without memory
    return model.eval()
