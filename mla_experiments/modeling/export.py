"""Which stock model of transformers each of ours is: Llama for MHA, GQA and MQA, a dense DeepSeek-V3 for MLA."""

from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from .configuration import DecoderConfig


def stock_config(config: DecoderConfig) -> PreTrainedConfig:
    """Return the config of the stock model with the same weights, under the same names, and the same logits.

    Raises:
        UserError: there is none: learned positions, Llama in the interleaved rotary layout, another mechanism.
    """
    shared = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "rms_norm_eps", "initializer_range", "tie_word_embeddings",
        "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    values = {name: getattr(config, name) for name in shared}
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.positions != "rope":
        raise UserError(f"positions={config.positions} exists in no stock model; only positions=rope can be exported")
    if config.attention == "mla":
        return DeepseekV3Config(
            **values,
            **config.attention_options,
            num_key_value_heads=config.num_attention_heads,
            rope_interleave=config.rope_interleave,
            first_k_dense_replace=config.num_hidden_layers,  # every layer dense, none of experts
        )
    if config.attention not in ("mha", "gqa", "mqa"):
        raise UserError(f"attention={config.attention} exists in no stock model; mha, gqa, mqa and mla can be exported")
    if config.rope_interleave:
        raise UserError("rope_interleave=True exists in no stock Llama; only the half-split layout can be exported")
    return LlamaConfig(**values, **config.attention_options)


def stock_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the stock model with a copy of the weights of `model`, on its device and in its dtype."""
    stock = AutoModelForCausalLM.from_config(stock_config(model.config))
    stock.load_state_dict(model.state_dict())
    return stock.to(device=model.device, dtype=model.dtype)
