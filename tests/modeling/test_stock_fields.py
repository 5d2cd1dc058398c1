"""Every field of a stock config is carried over, changes no logit, or is refused by its name: none is silently lost."""

import json
from pathlib import Path

import pytest
import torch
from conftest import needs_a_library_without
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from mla_experiments.errors import UserError
from mla_experiments.modeling import load_model
from mla_experiments.modeling.conversion import import_checkpoint

LENGTH = 64
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
SIZE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": LENGTH, "initializer_range": 0.3,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 4, "qk_rope_head_dim": 6, "v_head_dim": 4,
    "first_k_dense_replace": 2, "n_routed_experts": 8, "moe_intermediate_size": 4, "num_experts_per_tok": 1,
    "n_group": 1, "topk_group": 1, "num_key_value_heads": None,
}  # fmt: skip
BASES = {
    "llama": SIZE,
    "granite": SIZE,
    "olmo2": SIZE,
    "smollm3": {**SIZE, "pad_token_id": None},
    "deepseek_v2": {**SIZE, **LATENT},
    "deepseek_v3": {**SIZE, **LATENT, "num_mtp_layers": 1},
}
CHANGED = {  # every field that a stock config declares, with another value than in BASES
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "hidden_act": "gelu", "max_position_embeddings": 96, "initializer_range": 0.5,
    "rms_norm_eps": 0.1, "use_cache": False, "pad_token_id": 3, "bos_token_id": 5, "eos_token_id": [2, 3],
    "pretraining_tp": 2, "tie_word_embeddings": True, "rope_parameters": YARN, "attention_bias": True,
    "attention_dropout": 0.5, "mlp_bias": True, "head_dim": 6, "kv_lora_rank": 6, "q_lora_rank": 5,
    "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6, "first_k_dense_replace": 1, "n_group": 2,
    "n_routed_experts": 16, "n_shared_experts": 3, "output_router_logits": True, "routed_scaling_factor": 3.0,
    "topk_group": 2, "topk_method": "group_limited_greedy", "norm_topk_prob": None, "num_experts_per_tok": 2,
    "moe_intermediate_size": 8, "rope_interleave": False, "num_mtp_layers": 0, "embedding_multiplier": 3.0,
    "attention_multiplier": 0.7, "residual_multiplier": 0.3, "logits_scaling": 4.0,
    "no_rope_layers": [0, 1, 1], "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8,
    "layer_types": ["sliding_attention"] * 2,
}  # fmt: skip
DECLARED = [(kind, name) for kind in BASES for name in AutoConfig.for_model(kind).__class__.__annotations__]
# not declared, but looked for by transformers in any config
UNDECLARED = {
    "sliding_window": 8, "layer_types": ["sliding_attention"] * 2, "attention_chunk_size": 8, "is_causal": False,
    "quantization_config": {"quant_method": "fp8"}, "partial_rotary_factor": 0.5,
    "per_layer_config": {"0": {"intermediate_size": 20}},
}  # fmt: skip


def saved(folder: Path, config, written: dict | None = None):
    """Save a stock model of random weights, norms included, with its own config.json or the one given; return it."""
    set_seed(0)
    stock = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0, 0.2)
    stock.save_pretrained(folder)
    if written:
        (folder / "config.json").write_text(json.dumps(written))
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def assert_same_logits(stock, ours):
    limit = stock.config.max_position_embeddings
    with torch.inference_mode():
        for first, count in ((0, 9), (limit - 9, 9), (0, limit)):
            tokens, positions = torch.randint(0, 40, (2, count)), torch.arange(first, first + count)[None]
            expected = stock(tokens, position_ids=positions).logits
            found = ours(tokens, position_ids=positions).logits
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "name"), DECLARED, ids=[f"{kind}, {name}" for kind, name in DECLARED])
def test_a_field_is_carried_over_or_refused_by_its_name(tmp_path, kind, name):
    stock = saved(tmp_path / "stock", AutoConfig.for_model(kind, **{**BASES[kind], name: CHANGED[name]}))
    try:
        import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    except UserError as error:
        assert name in str(error)
    else:
        assert_same_logits(stock, load_model(tmp_path / "ours"))


@pytest.mark.parametrize("name", UNDECLARED)
def test_what_transformers_looks_for_in_any_config_is_refused_by_its_name(tmp_path, name):
    saved(tmp_path / "stock", AutoConfig.for_model("llama", **SIZE))
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    config |= {name: UNDECLARED[name]}
    (tmp_path / "stock" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=name):
        import_checkpoint(tmp_path / "stock", tmp_path / "ours")


def test_a_field_that_nobody_here_knows_is_refused_where_it_is_used(tmp_path, monkeypatch):
    from dataclasses import dataclass

    from transformers import LlamaConfig

    from mla_experiments.modeling.export import native_config

    @dataclass(kw_only=True, repr=False)
    class LaterConfig(LlamaConfig):
        model_type = "llama"
        logit_scale: float = 1.0

    native_config(LaterConfig(**SIZE))
    with pytest.raises(UserError, match=r"logit_scale=0\.5"):
        native_config(LaterConfig(**SIZE, logit_scale=0.5))


# config.json as it lies on the hub, of before transformers 5: made smaller, nothing else changed
ON_THE_HUB = {
    "Llama 2": {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "initializer_range": 0.3, "model_type": "llama", "num_key_value_heads": 4, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float32",
        "transformers_version": "4.31.0.dev0", "use_cache": True,
    },
    "Llama 3.2": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 30,
        "eos_token_id": [31, 32, 33], "head_dim": 6, "hidden_act": "silu", "mlp_bias": False, "model_type": "llama",
        "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 16, "rope_type": "llama3"},
        "tie_word_embeddings": True, "torch_dtype": "float32", "use_cache": True,
    },
    "Llama, linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e6},
    "Llama, YaRN": {
        "model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True},
        "original_max_position_embeddings": 16, "torch_dtype": "float32", "head_dim": 8,
    },
    "Llama, longrope": {
        "model_type": "llama", "original_max_position_embeddings": 16, "head_dim": 8,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 4.0, 6.0]},
    },
    "Llama, llama3, of two lengths": {
        "model_type": "llama", "original_max_position_embeddings": 16, "head_dim": 8,
        "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32},
    },
    "DeepSeek-V2-Lite": {
        "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config",
                     "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"},
        "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 2,
        "hidden_act": "silu", "kv_lora_rank": 8, "model_type": "deepseek_v2", "moe_intermediate_size": 4,
        "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False,
        "num_experts_per_tok": 6, "num_key_value_heads": 4, "pretraining_tp": 1, "q_lora_rank": None,
        "qk_nope_head_dim": 4, "qk_rope_head_dim": 6, "rms_norm_eps": 1e-06, "rope_theta": 10000,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                         "original_max_position_embeddings": 16, "type": "yarn"},
        "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": True, "topk_group": 1,
        "topk_method": "greedy", "torch_dtype": "float32", "v_head_dim": 4,
    },
    "DeepSeek-V2, a foreign field": {
        "model_type": "deepseek_v2", **LATENT, "num_key_value_heads": 4,
        "rope_interleave": False,  # V3's: the V2 of transformers does not look at it
    },
    "DeepSeek-V3": {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "ep_size": 1, "first_k_dense_replace": 3,
        "kv_lora_rank": 8, "model_type": "deepseek_v3", "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "num_key_value_heads": 4, "num_nextn_predict_layers": 1, "q_lora_rank": 5, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 6, "rms_norm_eps": 1e-05, "rope_theta": 10000,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                         "original_max_position_embeddings": 16, "type": "yarn"},
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "torch_dtype": "float32", "v_head_dim": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_configs_as_they_lie_on_the_hub_are_read_as_transformers_reads_them(tmp_path, name):
    if name == "DeepSeek-V2-Lite":
        needs_a_library_without("its DeepSeek-V2 leaves out YaRN's mscale_all_dim")
    written = {**SIZE, **ON_THE_HUB[name]}
    (tmp_path / "config.json").write_text(json.dumps(written))
    stock = saved(tmp_path / "stock", AutoConfig.from_pretrained(tmp_path), written)
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert_same_logits(stock, ours)
    assert ours.generation_config.eos_token_id == stock.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 16}}, "factor=None"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.0}}, "factor=0.0"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "short_factor"),
        ({"rope_theta": 0}, "rope_theta=0"),
        ({"model_type": "gemma"}, "model_type=gemma"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling=0"),
        ({"model_type": "deepseek_v3", "first_k_dense_replace": None}, "first_k_dense_replace=None"),
        ({"model_type": "deepseek_v2"}, "first_k_dense_replace=0"),
        ({"model_type": "deepseek_v3", "n_routed_experts": None}, "n_routed_experts"),
    ],
)
def test_a_config_that_cannot_be_read_exactly_is_refused_by_its_field(tmp_path, changed, said):
    saved(tmp_path / "stock", AutoConfig.for_model("llama", **SIZE))
    (tmp_path / "stock" / "config.json").write_text(json.dumps({"model_type": "llama", **SIZE, **changed}))
    with pytest.raises(UserError, match=said):
        import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]
