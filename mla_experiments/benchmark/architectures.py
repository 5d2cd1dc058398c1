"""Shapes of well-known models, from their published `config.json` files."""

import copy
from dataclasses import dataclass

from transformers import PreTrainedConfig

from ..modeling import DecoderConfig
from ..modeling.export import native_config
from .costs import num_parameters


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
    """A decoder of ours, and what a published one has beyond it."""

    config: DecoderConfig
    experts: Experts | None = None

    @property
    def parameters(self) -> int:
        """All parameters; without biases, which none of these models has enough of to matter (Qwen: 0.002 %)."""
        return self._with_experts(lambda experts: experts.routed + experts.shared)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token's forward pass uses."""
        return self._with_experts(lambda experts: experts.active + experts.shared)

    def _with_experts(self, count) -> int:
        dense = num_parameters(self.config)
        if self.experts is None:
            return dense
        width, layers = self.config.hidden_size, self.config.num_hidden_layers - self.experts.first_dense
        mlp = 3 * width * self.config.intermediate_size
        mixture = 3 * width * self.experts.width * count(self.experts) + width * self.experts.routed
        return dense + layers * (mixture - mlp)


def architecture_from(config: PreTrainedConfig) -> Architecture:
    """Return the architecture of a config, ours or stock; its layers may be mixtures of experts, as DeepSeek's are.

    Raises:
        UserError: a model that differs from ours in more than that.
    """
    if isinstance(config, DecoderConfig):
        return Architecture(config)
    dense, layers = copy.deepcopy(config), config.num_hidden_layers
    dense.quantization_config = None  # says how numbers are stored, not how many there are
    first = getattr(config, "first_k_dense_replace", layers)
    if first >= layers:
        return Architecture(native_config(dense))
    dense.first_k_dense_replace = layers
    shape = config.n_routed_experts, config.n_shared_experts, config.num_experts_per_tok, config.moe_intermediate_size
    return Architecture(native_config(dense), Experts(first, *shape))


def _grouped(vocab_size, hidden_size, intermediate_size, layers, heads, groups, context):
    return Architecture(
        DecoderConfig(
            vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=intermediate_size,
            num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=context, attention="gqa",
            attention_options={"num_key_value_heads": groups},
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
    "llama-3-70b": _grouped(128_256, 8192, 28_672, 80, 64, 8, 8192),
    "mistral-7b": _grouped(32_000, 4096, 14_336, 32, 32, 8, 32_768),
    "qwen2.5-7b": _grouped(152_064, 3584, 18_944, 28, 28, 4, 131_072),
    "deepseek-v2-lite": _latent(102_400, 2048, 10_944, 27, 16, None, 163_840, Experts(1, 64, 2, 6, 1408)),
    "deepseek-v2": _latent(102_400, 5120, 12_288, 60, 128, 1536, 163_840, Experts(1, 160, 2, 6, 1536)),
    "deepseek-v3": _latent(129_280, 7168, 18_432, 61, 128, 1536, 163_840, Experts(3, 256, 1, 8, 2048)),
    "kimi-k2": _latent(163_840, 7168, 18_432, 61, 64, 1536, 131_072, Experts(1, 384, 1, 8, 2048)),
    "reference": Architecture(DecoderConfig()),
}
