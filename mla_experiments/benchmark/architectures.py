"""Shapes of well-known models, from their published `config.json` files, and of any other from its own."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedConfig

from ..errors import UserError, reason_of
from ..modeling import DecoderConfig
from ..modeling.attention.checks import require, require_whole
from ..modeling.export import LATENT_MODELS, native_config
from ..modeling.nested import is_tied, text_decoder
from .costs import BACKWARD, kept_of, layers_of, num_parameters, numbers_by_layer, training_flops_per_token
from .counting import stock_architecture
from .stock import StockArchitecture

OURS = ("llama", *LATENT_MODELS)  # as transformers calls what our decoder can be
EXPERT_FIELDS = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size")


@dataclass(frozen=True)
class Experts:
    """The mixture of experts in place of the MLP of all but the first layers (DeepSeekMoE)."""

    first_dense: int
    routed: int
    shared: int
    active: int
    width: int


@dataclass(frozen=True)
class Architecture:
    """A decoder of ours, and what a published one has beyond it; `notes` say what a reader of numbers must know."""

    config: DecoderConfig
    experts: Experts | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """All parameters; without biases and norms of heads, too few to matter (Qwen2.5: 0.002 %)."""
        return self._with_experts(lambda experts: experts.routed + experts.shared)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token's forward pass uses."""
        return self._with_experts(lambda experts: experts.active + experts.shared)

    @property
    def longest(self) -> int:
        """The longest sequence, in tokens."""
        return self.config.max_position_embeddings

    def cached_numbers(self, context: int) -> int:
        """Return how many numbers a sequence of `context` tokens keeps."""
        return kept_of(self._numbers_by_layer, self.config, context)

    def decoding_flops(self, context: int) -> int:
        """Return the FLOPs of decoding one token after `context` tokens, from what is cached."""
        config, layers = self.config, layers_of(self.config)
        in_layers = sum(
            layer.decoding_flops(min(context, window or context))
            for layer, window in zip(layers, config.windows(), strict=True)
        )
        in_attention = sum(p.numel() for layer in layers for p in layer.parameters())
        norms = config.hidden_size * (2 * config.num_hidden_layers + 1)  # those outside attention
        others = self.active_parameters - in_attention - self._table - norms
        return in_layers + 2 * others

    def training_flops(self) -> float:
        """Return training FLOPs per token of the longest sequence; experts count as far as a token uses them."""
        dense = replace(self, experts=None)
        in_experts = (1 + BACKWARD) * 2 * (self.active_parameters - dense.parameters)
        return training_flops_per_token(self.config, self.longest) + in_experts

    def weights_read(self, batch: int) -> int:
        """Return how many weights a step reads; with experts those of each token, up to all, and of a table one row."""
        if not self.experts:
            return self.parameters - self._table
        return min(self.parameters, batch * self.active_parameters) - self._table

    def described(self) -> str:
        """Return the mechanisms and their options."""
        return "; ".join(
            f"{name}: {', '.join(f'{k} {v}' for k, v in options.items() if v is not None)}"
            for name, options in self.config.mechanisms.items()
        )

    def cache_described(self, size: int) -> str:
        """Return what the cache takes, at `size` bytes a number."""
        numbers = self.cached_numbers(1)
        each = numbers / self.config.num_hidden_layers
        differ = len(self.config.mechanisms) > 1 or self.config.layer_options
        mean = " on average" if differ else ""
        return f"{numbers * size:,} bytes a token, {each:,.6g} numbers a token and layer{mean}"

    @cached_property  # asked for at each of many contexts
    def _numbers_by_layer(self) -> list[int]:
        return numbers_by_layer(self.config)

    @property
    def _table(self) -> int:
        return 0 if self.config.tie_word_embeddings else self.config.vocab_size * self.config.hidden_size

    def _with_experts(self, count) -> int:
        dense = num_parameters(self.config)
        if self.experts is None:
            return dense
        width, layers = self.config.hidden_size, self.config.num_hidden_layers - self.experts.first_dense
        mlp = 3 * width * self.config.intermediate_size
        mixture = 3 * width * self.experts.width * count(self.experts) + width * self.experts.routed
        return dense + layers * (mixture - mlp)


def architecture_from(config: PreTrainedConfig) -> Architecture | StockArchitecture:
    """Return the architecture of a config, ours or stock; of one around a text decoder's, that of the decoder.

    Llama and DeepSeek are read as ours, mixtures of experts included, so that another mechanism can be asked for; what
    our decoder does not have is counted as transformers builds it.

    Raises:
        UserError: no decoder of text, or one that cannot be counted, by its model_type or field.
    """
    if isinstance(config, DecoderConfig):
        return counted_once(Architecture(config))
    text = decoder_of(config)
    nested = text is not config
    notes = (f"only the text decoder ({text.model_type}) of {config.model_type} is counted",) if nested else ()
    tied = is_tied(config, text)
    try:
        return replace(counted_once(as_ours(text, tied)), notes=notes)
    except UserError as error:  # a feature that ours does not have, or a value that no model can have
        refused = error
    try:
        return replace(stock_architecture(text, tied, nested), notes=notes)
    except UserError:
        if text.model_type in OURS:
            raise refused from None  # names the field
        raise


def decoder_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the text decoder in a stock config, or the config itself.

    Raises:
        UserError: an encoder and a decoder, or more decoders than one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model_type={config.model_type} with is_encoder_decoder=True has an encoder too; plan counts decoders "
            "alone"
        )
    return text_decoder(config)


def counted_once(architecture: Architecture) -> Architecture:
    """Return an architecture after its parameters could be counted.

    Raises:
        UserError: its sizes are beyond what can be counted.
    """
    try:
        architecture.parameters  # noqa: B018 - sizes of a config are not yet sizes of a model
    except RuntimeError as error:
        raise UserError(f"a decoder of these sizes cannot be planned ({reason_of(error)})") from None
    return architecture


def as_ours(config: PreTrainedConfig, tied: bool) -> Architecture:
    """Return the architecture of a stock config as a decoder of ours; its layers may be mixtures, as DeepSeek's are.

    Raises:
        UserError: a model that differs from ours in more than that.
    """
    dense, layers = copy.deepcopy(config), getattr(config, "num_hidden_layers", None)
    dense.quantization_config = None  # says how numbers are stored, not how many there are
    dense.tie_word_embeddings = tied
    first = getattr(config, "first_k_dense_replace", layers)
    if not isinstance(layers, int) or not isinstance(first, int):
        raise UserError(f"first_k_dense_replace={first} is not a number")
    if first >= layers:
        native = native_config(dense)
        native.tie_word_embeddings = tied  # of a Granite too, which import unties
        return Architecture(native)
    dense.first_k_dense_replace = layers
    native = native_config(dense)
    for name in EXPERT_FIELDS:
        require_whole(name, getattr(config, name))
    experts = Experts(first, *(getattr(config, name) for name in EXPERT_FIELDS))
    require(
        experts.active <= experts.routed,
        f"num_experts_per_tok={experts.active} is more than n_routed_experts={experts.routed}",
    )
    return Architecture(native, experts)


def _grouped(vocab_size, hidden_size, intermediate_size, layers, heads, groups, context, tied=False):
    return Architecture(
        DecoderConfig(
            vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=intermediate_size,
            num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=context, attention="gqa",
            attention_options={"num_key_value_heads": groups}, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def _latent(vocab_size, hidden_size, intermediate_size, layers, heads, q_lora_rank, context, experts):
    options = {"q_lora_rank": q_lora_rank, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
               "v_head_dim": 128}  # fmt: skip
    return Architecture(
        DecoderConfig(
            vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=intermediate_size,
            num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=context, attention="mla",
            attention_options=options,
        ),
        experts,
    )  # fmt: skip


ARCHITECTURES = {
    "llama-3-8b": _grouped(128_256, 4096, 14_336, 32, 32, 8, 8192),
    "llama-3.1-8b": _grouped(128_256, 4096, 14_336, 32, 32, 8, 131_072),
    "llama-3-70b": _grouped(128_256, 8192, 28_672, 80, 64, 8, 8192),
    "mistral-7b": _grouped(32_000, 4096, 14_336, 32, 32, 8, 32_768),
    "qwen2.5-7b": _grouped(152_064, 3584, 18_944, 28, 28, 4, 131_072),
    "qwen3-8b": _grouped(151_936, 4096, 12_288, 36, 32, 8, 40_960),
    "smollm2-135m": _grouped(49_152, 576, 1536, 30, 9, 3, 8192, tied=True),
    "deepseek-v2-lite": _latent(102_400, 2048, 10_944, 27, 16, None, 163_840, Experts(1, 64, 2, 6, 1408)),
    "deepseek-v2": _latent(102_400, 5120, 12_288, 60, 128, 1536, 163_840, Experts(1, 160, 2, 6, 1536)),
    "deepseek-v3": _latent(129_280, 7168, 18_432, 61, 128, 1536, 163_840, Experts(3, 256, 1, 8, 2048)),
    "kimi-k2": _latent(163_840, 7168, 18_432, 61, 64, 1536, 131_072, Experts(1, 384, 1, 8, 2048)),
    "reference": Architecture(DecoderConfig()),
}
