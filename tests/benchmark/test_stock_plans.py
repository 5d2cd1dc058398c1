"""Plans from any config.json: what transformers itself builds and caches, or one sentence that says why not."""

import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from mla_experiments.benchmark.architectures import Architecture, architecture_from
from mla_experiments.benchmark.counting import states_of, stock_architecture
from mla_experiments.benchmark.hardware import HARDWARE
from mla_experiments.benchmark.plan import architecture_of, facts, plan
from mla_experiments.cli import main
from mla_experiments.errors import UserError
from mla_experiments.modeling.conversion import import_checkpoint

CAUSAL = AutoModelForCausalLM._model_mapping
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 8, "moe_intermediate_size": 32}
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
LAYERS = 4
PARTS = 6  # in which all configs are tried, the first whenever anything is
SLIDING = ["sliding_attention", "full_attention"] * 2
KINDS = {  # of caches, of attention and of layers: a model of each, small enough to run
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 64},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 64},
    "falcon": {**{name: value for name, value in SMALL.items() if name != "head_dim"}, "multi_query": True},
    "opt": {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64,
            "word_embed_proj_dim": 64, "max_position_embeddings": 512},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 4, "vocab_size": 64, "max_seq_len": 512},
    "llama": {**SMALL, "attention_bias": True, "mlp_bias": True},
    "granite": {**SMALL, "tie_word_embeddings": True, "embedding_multiplier": 6.0, "residual_multiplier": 0.2},
    "olmo2": SMALL,
    "smollm3": SMALL,
    "phi3": {**SMALL, "hidden_size": 64},
    "gemma3_text": {**SMALL, "sliding_window": 16, "layer_types": SLIDING, "tie_word_embeddings": True},
    "gpt_oss": {**SMALL, "sliding_window": 16, "layer_types": SLIDING, "num_local_experts": 8,
                "num_experts_per_tok": 2},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**SMALL, **EXPERTS, "num_local_experts": 8},
    "deepseek_v3": {**SMALL, **LATENT, **EXPERTS, "n_routed_experts": 8, "n_group": 1, "topk_group": 1,
                    "first_k_dense_replace": 1, "attention_bias": True},
    "minicpm3": {**SMALL, **LATENT},
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"] * 2},
    "jamba": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
              "mamba_d_state": 4, "use_mamba_kernels": False},
    "qwen3_5_text": {**SMALL, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                     "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    "mamba": {"hidden_size": 512, "num_hidden_layers": 4, "vocab_size": 64, "state_size": 4},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(level)


def saved(kind, folder):
    """Save the config of a kind as its class makes it, of few layers of text where it can be; return it, or None."""
    for shorten in (True, False):
        try:
            config = CONFIG_MAPPING[kind]()
            text = config.get_text_config(decoder=True)
            for name, value in list(vars(text).items()) if shorten else ():
                if isinstance(value, list) and len(value) == text.num_hidden_layers:
                    setattr(text, name, value[:LAYERS])
            if shorten:
                text.num_hidden_layers = min(text.num_hidden_layers, LAYERS)
            config.save_pretrained(folder)
            AutoConfig.from_pretrained(folder)
        except Exception:  # of a class of transformers
            continue
        return config
    return None


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.exhaustive) for part in range(1, PARTS))])
def test_every_config_of_transformers_gives_its_own_counts_or_a_sentence(tmp_path, part):
    answered = 0
    for kind in sorted(CONFIG_MAPPING)[part::PARTS]:
        if (config := saved(kind, tmp_path)) is None:
            continue
        try:
            found = architecture_of(str(tmp_path))
            assert facts(found, HARDWARE["h100"]) and plan(found, HARDWARE["h100"], [64], [1]), kind
            answered += 1
            if type(config) in CAUSAL and config.get_text_config(decoder=True) is config:
                with torch.device("meta"):
                    assert found.parameters == AutoModelForCausalLM.from_config(config).num_parameters(), kind
        except UserError as error:
            assert re.search(r"(model_type|num_\w+)=", str(error)) and "\n" not in str(error), kind
        with pytest.raises(UserError):  # there are no weights
            import_checkpoint(tmp_path, tmp_path / "ours")
    assert answered >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_caches_and_multiplies_is_what_was_planned(kind):
    config = AutoConfig.for_model(kind, **KINDS[kind])
    planned = architecture_from(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.set_experts_implementation("batched_mm")
    assert planned.parameters == pytest.approx(model.num_parameters(), rel=0.005)  # ours counts no biases
    tokens = torch.randint(3, 60, (1, 2))
    with torch.inference_mode():
        cache = model(tokens, use_cache=True).past_key_values
        assert planned.cached_numbers(2) == held(cache)
        cache = model(torch.randint(3, 60, (1, 40)), use_cache=True).past_key_values
        for layer in cache.layers:
            if window := getattr(layer, "sliding_window", None):
                assert layer.keys.shape[2] == window - 1  # and the next token makes the window full
        kept = sum(layers.numbers for layers in getattr(planned, "layers", ()) if layers.window)
        assert planned.cached_numbers(40) == held(cache) + kept
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, :1], use_cache=True, past_key_values=cache)
    found, context = counter.get_total_flops(), 41
    if "kv_lora_rank" in KINDS[kind]:  # the model expands the latents of all tokens, the plan absorbs them
        head = KINDS[kind]["num_attention_heads"] * 4 * 2
        expanded = head * (context * (16 + 8 + 16) + (context - 1) * 32 * (16 + 16))
        found += head * context * (2 * 32 + 8) - expanded
    assert planned.decoding_flops(context) == pytest.approx(found, rel=0.02)


def held(cache):
    """All numbers that a cache of one sequence holds."""
    keys = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    return sum(tensor.numel() for tensor in keys if tensor is not None) + sum(
        state.numel() for layer in cache.layers for state in states_of(layer)
    )


NESTED = {  # the kinds that a text decoder's config lies in, and that decoder, small
    "llava": {"text_config": {"model_type": "llama", **SMALL}},
    "gemma3": {"text_config": {"model_type": "gemma3_text", **KINDS["gemma3_text"]}},
    "llama4": {"text_config": {"model_type": "llama4_text", **SMALL, "num_local_experts": 4,
                               "intermediate_size_mlp": 80, "interleave_moe_layer_step": 2}},
    "qwen2_vl": {"tie_word_embeddings": True, "text_config": {
        "model_type": "qwen2_vl_text", **SMALL,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}},
    "kimi_k25": {"text_config": {"model_type": "deepseek_v3", **KINDS["deepseek_v3"], "attention_bias": False}},
}  # fmt: skip


@pytest.mark.parametrize("kind", NESTED)
def test_of_a_model_of_images_too_the_text_decoder_is_planned_and_that_is_said(tmp_path, kind):
    config = AutoConfig.for_model(kind, **NESTED[kind])
    config.save_pretrained(tmp_path)
    planned = architecture_of(str(tmp_path))
    inner = NESTED[kind]["text_config"]["model_type"]
    assert f"only the text decoder ({inner}) of {kind} is counted" in facts(planned, HARDWARE["a100"])
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text = type(config.get_text_config(decoder=True))
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and type(part.config) is text]
    weights = {id(p): p.numel() for part in [*parts, model.get_output_embeddings()] for p in part.parameters()}
    assert planned.parameters == sum(weights.values())


def test_a_mixture_read_as_ours_is_what_transformers_builds(tmp_path):
    config = AutoConfig.for_model("deepseek_v3", **{**KINDS["deepseek_v3"], "attention_bias": False})
    ours, stock = architecture_from(config), stock_architecture(config, tied=False)
    assert isinstance(ours, Architecture)
    for name in ("parameters", "active_parameters", "longest"):
        assert getattr(ours, name) == getattr(stock, name)
    assert ours.cached_numbers(100) == stock.cached_numbers(100)
    assert ours.weights_read(3) == stock.weights_read(3)
    assert ours.decoding_flops(1000) == pytest.approx(stock.decoding_flops(1000), rel=0.005)
    assert ours.training_flops() == pytest.approx(stock.training_flops(), rel=0.005)


def test_windows_and_states_bound_what_a_sequence_keeps(tmp_path, capsys):
    AutoConfig.for_model("gemma3_text", **KINDS["gemma3_text"]).save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--hardware", "h100", "--contexts", "16", "4096", "--batch-sizes", "1"]) == 0
    said = capsys.readouterr().out
    assert "of 4 layers 2 keep the last 16 tokens, 2 keep all tokens" in said
    assert "cache: 256 bytes a token of the last 16 and 256 bytes a token\n" in said
    AutoConfig.for_model("mamba", **KINDS["mamba"]).save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--hardware", "h100"]) == 0
    assert "one sequence in 75 GiB: any\n" in capsys.readouterr().out
    assert main(["plan", str(tmp_path), "--hardware", "h100", "--attention", "mla"]) == 2
    assert "attention cannot be changed in mamba" in capsys.readouterr().err


def test_what_a_config_leaves_out_is_said(tmp_path, capsys):
    text = {"model_type": "llama", "vocab_size": 100, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert main(["plan", str(tmp_path), "--hardware", "h100"]) == 0
    assert "config.json leaves out hidden_size, num_attention_heads: what" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **KINDS["gpt2"], "pad_token_id": 0}))
    assert main(["plan", str(tmp_path), "--hardware", "h100"]) == 0
    assert "leaves out" not in capsys.readouterr().out


LLAMA = {"model_type": "llama", **SMALL}


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"model_type": "t5"}, "model_type=t5 with is_encoder_decoder=True"),
        ({"model_type": "bert"}, "model_type=bert keeps no cache"),
        ({"model_type": "vit"}, "model_type=vit is no language model"),
        ({"model_type": "whisper"}, "is_encoder_decoder=True"),
        ({"model_type": "rwkv", "num_hidden_layers": 2}, "model_type=rwkv keeps no cache"),
        ({"model_type": "deepseek_v32", "num_hidden_layers": 4}, "index_topk=2048 attends to chosen tokens"),
        ({"model_type": "hrm_text", **SMALL}, "weights are used more than once"),
        ({"model_type": "nobody_knows"}, "model_type=nobody_knows is none that transformers"),
        ({"model_type": "kimi_vl", "auto_map": {"AutoConfig": "a.B"}}, "code of its own, which is never run"),
        ({"hidden_size": 8}, "model_type=None"),
        ([1, 2], "holds no dictionary"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ({**LLAMA, "num_attention_heads": 0}, "num_attention_heads=0 must lie between"),
        ({**LLAMA, "hidden_size": -64}, "hidden_size=-64 must lie between"),
        ({**LLAMA, "hidden_size": "64"}, "hidden_size"),
        ({**LLAMA, "vocab_size": float("nan")}, "vocab_size=nan must lie between"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 must lie between 1 and 1,000"),
        ({**LLAMA, "intermediate_size": 10**30}, "intermediate_size=1"),
        ({**LLAMA, "num_attention_heads": 5}, "hidden_size=64 is not a multiple of num_attention_heads=5"),
        ({**LLAMA, "num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"model_type": "llava", "text_config": {**LLAMA, "vocab_size": 0}}, "vocab_size=0 must lie between"),
        ({"model_type": "llava", "text_config": 3}, "text_config"),
        ({"model_type": "mixtral", **SMALL, "num_local_experts": 2, "num_experts_per_tok": 3}, "mixtral"),
        ({"model_type": "deepseek_v3", **KINDS["deepseek_v3"], "n_shared_experts": -1}, "n_shared_experts=-1"),
        ({"model_type": "gemma3_text", **KINDS["gemma3_text"], "sliding_window": 3}, "sliding_window=3"),
    ],
)
def test_what_cannot_be_planned_from_a_config_is_one_sentence(tmp_path, capsys, described, said):
    (tmp_path / "config.json").write_text(described if isinstance(described, str) else json.dumps(described))
    capsys.readouterr()
    assert main(["plan", str(tmp_path), "--hardware", "h100"]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.startswith("error: ") and printed.count("\n") == 1
