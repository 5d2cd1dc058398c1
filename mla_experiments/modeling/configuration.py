"""The configuration of a decoder: its size, its positions, and its attention, a mechanism or several, by name."""

import dataclasses
import difflib
from functools import cache
from typing import Any

import transformers
from packaging.version import Version
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..errors import UserError
from .attention import ATTENTION, Attention, find
from .attention.checks import (
    COMMON,
    LARGEST,
    MOST_LAYERS,
    check_common,
    check_options,
    require,
    require_number,
    require_whole,
)  # fmt: skip
from .attention.hybrid import asked_for, is_hybrid, names_in, options_for, pattern_of
from .attention.plugins import how_to_get, source_of
from .attention.rope import check_rope
from .cache_name import NAMES

logger = logging.get_logger(__name__)

# what transformers' PreTrainedConfig takes out of other fields, or lets any config carry
TAKEN_BY_THE_LIBRARY = (
    "torch_dtype", "name_or_path", "num_labels", "attn_implementation", "experts_implementation", "output_attentions",
    "rope_theta", "rope_scaling", "model_type", "transformers_version", "quantization_config", "auto_map",
)  # fmt: skip
SET_BY_OTHERS = "set_by_others"  # in a saved configuration: the names of attributes that are no field of ours
FULL, SLIDING = "full_attention", "sliding_attention"
POSITIONS = ("rope", "learned", "none")
NORM_PLACEMENTS = ("pre", "post")
INITIALIZATIONS = ("normal", "scaled", "zero")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


class DecoderConfig(PreTrainedConfig):
    """Everything that determines a decoder's weights and arithmetic.

    Args:
        vocab_size: number of tokens.
        hidden_size: width of the residual stream.
        intermediate_size: width of the SwiGLU MLP; None means 8/3 of the width, rounded up to a multiple of 64
            (Shazeer 2020, GLU Variants, §3: three matrices of 8/3 cost as much as two of 4).
        num_hidden_layers: number of blocks.
        num_attention_heads: query heads.
        max_position_embeddings: the longest sequence, in tokens.
        attention: name of a registered mechanism, or `path/to/file.py:Class`; of a hybrid those of its layers, as a
            list with one for each, or as a pattern that repeats over them, such as "mla+mla+mha". It is kept as the
            shortest pattern: a list of equal names is the plain config of that name.
        attention_options: the mechanism's own hyper-parameters; what is left out derives from the size. Where a list
            or a pattern is given they are by mechanism: `{"mla": {"kv_lora_rank": 32}}`.
        layer_options: for each layer a dictionary of those options that its mechanism has otherwise there, such as
            `[{"kv_lora_rank": 24}, {"kv_lora_rank": 40}]`; None for none.
        attention_source: where a mechanism from outside came from, see `plugins.source_of`; of a hybrid by mechanism;
            filled in.
        output_gate: "element" or "head": a gate on what every head reads (Qiu et al. 2025); None: none.
        qk_norm: whether queries and keys are normed before they turn: True for each head alone, as in Qwen3, "whole"
            for all heads together, as in OLMo 2.
        attention_bias: whether the projections of the hidden states in attention have biases, as in Qwen2.
        sliding_window: how many tokens a layer with a window sees, itself included; None for no windows.
        layer_types: "full_attention" or "sliding_attention" for each layer, transformers' own names; by default all
            layers have the window, where there is one.
        positions: "rope", "learned" absolute positions added to the embeddings, or "none": the mask alone tells order
            (Kazemnejad et al. 2023, arXiv 2305.19466).
        no_rope_layers: transformers' own name: for each layer 1 where RoPE turns queries and keys and 0 where it does
            not, as in SmolLM3 (Yang et al. 2025, RoPE to NoPE and Back Again, arXiv 2501.18795); None: it does in all.
        rope_parameters: transformers' standard description of RoPE: `rope_theta`, the base of the frequencies, and
            `rope_type`, "default" or one that stretches the context ("linear", "llama3", "yarn") with what it needs.
        rope_interleave: False for Llama's half-split rotary pairs, True for DeepSeek's interleaved ones.
        norm_placement: "pre", norms before attention and MLP; or "post", behind them, as in OLMo 2.
        rms_norm_eps: added to the mean square in every norm of the block.
        initializer_range: standard deviation of every matrix and embedding at the start.
        initialization: how the two matrices of a block start that add to the residual stream: "normal" as all others;
            "scaled" by 1 / √(2 · num_hidden_layers), so that the stream does not grow with depth (Radford et al. 2019,
            GPT-2, §2.3); "zero", so that every block starts as the identity (Yang et al. 2021, µP, appendix D.2).
        tie_word_embeddings: whether the output projection is the embedding.

    Raises:
        UserError: a value that cannot work, named with its field.
    """

    model_type = "mla_experiments"
    keys_to_ignore_at_inference = list(NAMES)  # noqa: RUF012

    # `| Any`: less may be given, or more; what is read of a config is complete, and of the first type
    vocab_size: int = 10_000
    hidden_size: int = 512
    intermediate_size: int | Any = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    max_position_embeddings: int = 1024
    attention: str | Any = "mla"
    attention_options: dict | Any = None
    layer_options: list[dict] | None = None
    attention_source: dict | None = None
    output_gate: str | None = None
    qk_norm: bool | str = False
    attention_bias: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | Any = None
    positions: str = "rope"
    no_rope_layers: list[int] | None = None
    rope_parameters: dict | Any = None
    rope_interleave: bool = False
    norm_placement: str = "pre"
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    initialization: str = "normal"
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in SIZES:
            most = MOST_LAYERS if name == "num_hidden_layers" else LARGEST
            require_whole(name, getattr(self, name), most)
        if self.intermediate_size is None:
            self.intermediate_size = -(-8 * self.hidden_size // 3 // 64) * 64
        require_whole("intermediate_size", self.intermediate_size)
        for name in ("rms_norm_eps", "initializer_range"):
            require_number(name, getattr(self, name))
        for name in ("rope_interleave", "tie_word_embeddings", "use_cache"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"{name}={value!r} must be True or False.")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            several = name == "eos_token_id" and isinstance(value, list)
            fits = all(type(one) is int for one in (value if several else [value]))
            require(value is None or fits, f"{name}={value!r} must be a token id.")
        chosen = {"positions": POSITIONS, "initialization": INITIALIZATIONS, "norm_placement": NORM_PLACEMENTS}
        for name, known in chosen.items():
            value = getattr(self, name)
            require(value in known, f"{name}={value!r} is unknown; choose {' or '.join(known)}.")
        require(
            self.norm_placement == "pre" or self.initialization == "normal",
            f"initialization={self.initialization!r} is undone by the norms of norm_placement='post'; choose normal.",
        )
        self._resolve_attention()
        for name in self.mechanisms:
            check_common(ATTENTION[name], {common: getattr(self, common) for common in COMMON})
        self._check_layer_options()
        self._check_windows()
        self._check_rotary_layers()
        for name, described in (
            ("rope_parameters", self.rope_parameters),
            ("rope_scaling", kwargs.get("rope_scaling")),
        ):
            require(described is None or isinstance(described, dict), f"{name}={described!r} must be a dictionary.")
        self._refuse_unknown(kwargs)
        require(not self.is_encoder_decoder, "is_encoder_decoder=True: there is no encoder here.")
        super().__post_init__(**kwargs)
        for dim in {self.mechanism(n).rotary_dim(self.options_of(n)) for n in range(self.num_hidden_layers)}:
            check_rope(self.rope_parameters, dim, self.max_position_embeddings)

    @property
    def mechanisms(self) -> dict[str, dict]:
        """The options of every mechanism that layers have, complete, by its name."""
        return self.attention_options if is_hybrid(self.attention) else {self.attention: self.attention_options}

    @property
    def sources(self) -> dict[str, dict]:
        """Where the mechanisms from outside came from, by name."""
        stated = self.attention_source or {}
        return stated if is_hybrid(self.attention) or not stated else {self.attention: stated}

    def mechanism(self, layer: int) -> type[Attention]:
        """Return the mechanism of a layer."""
        return ATTENTION[self._name_of(layer)]

    def options_of(self, layer: int) -> dict:
        """Return the options of a layer's mechanism, complete."""
        own = self.layer_options[layer] if self.layer_options else {}
        return {**self.mechanisms[self._name_of(layer)], **own}

    def is_rotary(self, layer: int) -> bool:
        """Return whether RoPE turns queries and keys of a layer."""
        return self.positions == "rope" and (self.no_rope_layers is None or bool(self.no_rope_layers[layer]))

    def _name_of(self, layer: int) -> str:
        names = names_in(self.attention)
        return names[layer % len(names)]

    def to_dict(self) -> dict:
        """Return all fields; what others have set on it beside them is named, so that it is read back, not refused."""
        fields = super().to_dict()
        others = sorted(name for name in fields if name not in _known_fields() and not name.startswith("_"))
        return fields | ({SET_BY_OTHERS: others} if others else {})

    def _validate_longrope_rope_parameters(self, *_: object, **__: object) -> None:
        """The library's own would warn: it takes whole heads to turn. `check_rope` knows how many numbers do."""

    def _check_layer_options(self) -> None:
        """Refuse options of layers that are not for each, or that the layer's mechanism cannot have."""
        given = self.layer_options
        if given is None:
            return
        fits = isinstance(given, list) and all(isinstance(own, dict) for own in given)
        require(fits, f"layer_options={given!r} must be a list of dictionaries.")
        require(
            len(given) == self.num_hidden_layers,
            f"layer_options names {len(given)} layers, but num_hidden_layers={self.num_hidden_layers}; name each.",
        )
        for layer in range(self.num_hidden_layers):
            try:
                self._resolved(self._name_of(layer), self.options_of(layer))
            except UserError as error:
                raise UserError(f"layer_options of layer {layer}: {error}") from None

    def _check_windows(self) -> None:
        """Refuse windows that cannot be, and say of each layer whether it has one."""
        if self.sliding_window is None:
            types = self.layer_types
            none = types is None or (isinstance(types, list) and all(kind == FULL for kind in types))
            require(none, f"layer_types={types!r} asks for windows; give sliding_window, or leave it out.")
            self.layer_types = [FULL] * self.num_hidden_layers  # which the library looks for once there is such a field
            return
        require_whole("sliding_window", self.sliding_window)
        require(self.sliding_window > 1, "sliding_window=1 sees no token but itself; give more.")
        require(
            self.positions == "rope",
            f"sliding_window={self.sliding_window} is for RoPE, not positions={self.positions}.",
        )
        if self.layer_types is None:
            self.layer_types = [SLIDING] * self.num_hidden_layers
        types = self.layer_types
        require(
            isinstance(types, list) and all(kind in (FULL, SLIDING) for kind in types),
            f"layer_types={types!r} must be a list of {FULL} and {SLIDING}.",
        )
        require(
            len(types) == self.num_hidden_layers,
            f"layer_types names {len(types)} layers, but num_hidden_layers={self.num_hidden_layers}; name each.",
        )
        for layer, window in enumerate(self.windows()):
            require(
                window is None or not self.mechanism(layer).turns_when_read,
                f"sliding_window={window} is not followed by attention={self._name_of(layer)}; leave it out, or have "
                f"layer {layer} see all by layer_types.",
            )

    def _check_rotary_layers(self) -> None:
        """Refuse `no_rope_layers` that do not say of each layer whether it turns, or ask what a mechanism cannot do."""
        layers = self.no_rope_layers
        if layers is None:
            return
        require(self.positions == "rope", f"no_rope_layers is for RoPE, not positions={self.positions}; leave it out.")
        fits = isinstance(layers, list) and all(isinstance(one, int) and one in (0, 1) for one in layers)
        require(fits, f"no_rope_layers={layers!r} must be a list of 1, with RoPE, and 0, without.")
        require(
            len(layers) == self.num_hidden_layers,
            f"no_rope_layers names {len(layers)} layers, but num_hidden_layers={self.num_hidden_layers}; name each.",
        )
        for layer, turns in enumerate(layers):
            require(
                bool(turns) or self._is_same_without_rope(layer),
                f"no_rope_layers leaves layer {layer} without RoPE, for which attention={self._name_of(layer)} keeps a "
                "rotary key; leave it out, or choose gqa.",
            )

    def _is_same_without_rope(self, layer: int) -> bool:
        """Whether a layer's mechanism may have the options that it has with RoPE."""
        options = self.options_of(layer)
        try:
            without = self.mechanism(layer).resolve(self.hidden_size, self.num_attention_heads, rotary=False, **options)
        except UserError:
            return False
        return without == options

    def windows(self) -> list[int | None]:
        """Return of each layer how many tokens it sees, None for all."""
        return [self.sliding_window if kind == SLIDING else None for kind in self.layer_types]

    def _refuse_unknown(self, given: dict) -> None:
        """Refuse fields that nobody knows, unless they were set by others or a newer library wrote them."""
        known = {*_known_fields(), *(given.pop(SET_BY_OTHERS, None) or ())}
        unknown = sorted(name for name in given if name not in known and not name.startswith("_"))
        if not unknown:
            return
        writer = str(self.transformers_version or transformers.__version__)
        if Version(writer) > Version(transformers.__version__):
            logger.warning_once(f"transformers {writer} wrote fields that {transformers.__version__} lacks: {unknown}")
            return
        near = difflib.get_close_matches(unknown[0], [field.name for field in dataclasses.fields(self)], n=1)
        hint = f"did you mean {near[0]}?" if near else "options of the mechanism belong in attention_options."
        raise UserError(f"{unknown[0]}={given[unknown[0]]!r} is no field of a decoder's configuration; {hint}")

    def _resolve_attention(self) -> None:
        """Find the mechanisms, complete their options, and say where those from outside came from."""
        asked, stated = asked_for(self.attention), self.attention_source
        several = isinstance(self.attention, list) or len(asked) > 1
        self._check_layers(asked)
        by_name = stated if several and isinstance(stated, dict) else dict.fromkeys(asked, stated)
        found = [find_from(name, by_name.get(name)) for name in asked]
        self.attention = pattern_of(found)
        given = {} if self.attention_options is None else self.attention_options
        check_options(given, {})
        if several and (unknown := sorted(given.keys() - set(found))):
            raise UserError(
                f"attention_options has {', '.join(unknown)}, which is no mechanism of attention={self.attention}; "
                f"state options by mechanism: {', '.join(dict.fromkeys(found))}."
            )
        by_mechanism = given if several else {self.attention: given}
        sources = {name: source_of(ATTENTION[name]) for name in found}
        own = {name: self._resolved(name, by_mechanism.get(name)) for name in sources}
        self.attention_options = options_for(self.attention, own)
        outside = {name: source for name, source in sources.items() if source}
        self.attention_source = options_for(self.attention, outside) or None

    def _check_layers(self, asked: list) -> None:
        """Refuse a list that does not name each layer, and a pattern that does not repeat to all of them."""
        length, layers = len(asked), self.num_hidden_layers
        named = all(isinstance(name, str) for name in asked)
        require(named, f"attention={self.attention!r} is no name of a mechanism.")
        require(
            not isinstance(self.attention, list) or length == layers,
            f"attention names {length} layers, but num_hidden_layers={layers}; name each.",
        )
        require(
            layers % length == 0,
            f"attention={self.attention} is a pattern of {length} layers, which does not repeat to "
            f"num_hidden_layers={layers}; choose a multiple.",
        )

    def _resolved(self, name: str, given: dict | None) -> dict:
        """Return the options of a mechanism, complete."""
        mechanism, given = ATTENTION[name], {} if given is None else given
        known = mechanism.option_types()
        check_options(given, known)
        if unknown := sorted(given.keys() - known.keys()):
            raise UserError(
                f"attention_options has {', '.join(unknown)}, unknown to attention={name!r}; "
                f"it knows {', '.join(sorted(known))}."
            )
        return mechanism.resolve(self.hidden_size, self.num_attention_heads, rotary=self.positions == "rope", **given)


def find_from(asked: str, stated: Any) -> str:
    """Return a mechanism's name in the registry, or say where it should have come from.

    Args:
        asked: its name, or `path/to/file.py:Class`.
        stated: where a checkpoint says that it came from, if it does.

    Raises:
        UserError: it is not here, or `stated` says nothing of the kind.
    """
    says = isinstance(stated, dict) and "class" in stated and ("file" not in stated or "sha256" in stated)
    require(not stated or says, f"attention_source={stated!r} does not say where a mechanism came from.")
    try:
        name = find(asked)
    except UserError:
        if not stated:
            raise
        raise UserError(f"attention={asked} is not here; {how_to_get(stated)}") from None
    if stated and stated != source_of(ATTENTION[name]):
        logger.warning_once(f"attention={name} of this model was another: {how_to_get(stated)}, for the same numbers")
    return name


@cache
def _known_fields() -> frozenset[str]:
    """The names of our fields, and of those that the library gives to any configuration."""
    own = (field.name for field in dataclasses.fields(DecoderConfig))
    return frozenset((*own, *vars(PreTrainedConfig()), *TAKEN_BY_THE_LIBRARY))
