"""What `export` writes is read alike by both generations of transformers, and by servers that tie nothing."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, set_seed

from mla_experiments.data import load_tokenizer
from mla_experiments.every_reader import tokenizer_for_every_reader
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.conversion import export_checkpoint, import_checkpoint

SIZE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 3e5},
    "linear": {"rope_type": "linear", "rope_theta": 3e5, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 3e5, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 3e5, "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 3e5, "factor": 8.0, "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    },
    "longrope": {
        "rope_type": "longrope", "rope_theta": 3e5, "original_max_position_embeddings": 64, "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3],
    },
}  # fmt: skip


def saved(folder, attention, max_shard_size="1GB", **more):
    """Save one of our models, as training leaves it, and return it."""
    set_seed(1)
    model = DecoderForCausalLM(DecoderConfig(**SIZE | more, attention=attention, use_cache=False)).eval()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def described(folder, name="config.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def assert_same_logits(folder, ours):
    tokens = torch.arange(120)[None] % 320
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
        torch.testing.assert_close(theirs, ours(tokens).logits, atol=3e-5, rtol=0)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_the_rotary_base_and_its_scaling_are_said_in_the_words_of_both_generations(tmp_path, attention, rope):
    options = {"qk_rope_head_dim": 8} if attention == "mla" else {}
    ours = saved(tmp_path / "run", attention, rope_parameters=ROPES[rope], attention_options=options)
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    config = described(tmp_path / "out")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 3e5
    scaling = {name: value for name, value in ROPES[rope].items() if name != "rope_theta"} | {"type": rope}
    assert config["rope_scaling"] == (None if rope == "default" else scaling)
    assert_same_logits(tmp_path / "out", ours)


def test_dtype_has_both_names_and_caches_are_used(tmp_path):
    saved(tmp_path / "run", "gqa")
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    config = described(tmp_path / "out")
    assert config["dtype"] == config["torch_dtype"] == "float32" and config["use_cache"] is True
    assert described(tmp_path / "out", "generation_config.json").get("use_cache", True) is True


@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_a_tied_output_projection_of_mla_is_stored_and_said_to_be_its_own(tmp_path, max_shard_size):
    ours = saved(tmp_path / "run", "mla", max_shard_size, tie_word_embeddings=True)
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert described(tmp_path / "out")["tie_word_embeddings"] is False
    weights = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert torch.equal(weights["lm_head.weight"], ours.model.embed_tokens.weight)
    size = sum(weight.nbytes for weight in weights.values())
    if max_shard_size == "20KB":
        index = described(tmp_path / "out", "model.safetensors.index.json")
        assert index["weight_map"].keys() == weights.keys() and index["metadata"]["total_size"] == size
    assert_same_logits(tmp_path / "out", ours)
    import_checkpoint(tmp_path / "out", tmp_path / "back")
    assert described(tmp_path / "back")["tie_word_embeddings"] is False


def test_what_others_tie_stays_tied(tmp_path):
    ours = saved(tmp_path / "run", "mqa", tie_word_embeddings=True)
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert described(tmp_path / "out")["tie_word_embeddings"] is True
    assert_same_logits(tmp_path / "out", ours)


def test_a_trained_run_and_its_export_have_a_tokenizer_by_a_name_that_both_generations_know(train, tmp_path):
    assert train("mha") == 0
    run = tmp_path / "weights" / "mha"
    export_checkpoint(run, tmp_path / "out")
    text = "it's 2024: the river\n\n  sees <|endoftext|> 東京"
    for folder in (tmp_path / "data" / "tokenizer", run, tmp_path / "out"):
        config = described(folder, "tokenizer_config.json")
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not config.keys() & {"backend", "is_local", "local_files_only"}
        tokenizer = load_tokenizer(folder)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert described(run)["use_cache"] is described(run, "generation_config.json")["use_cache"] is True


def test_special_tokens_in_a_list_bear_the_name_that_a_list_had(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": ["<a>"]}))
    tokenizer_for_every_reader(tmp_path)
    assert described(tmp_path, path.name) == {
        "tokenizer_class": "GPT2Tokenizer", "additional_special_tokens": ["<a>"],
    }  # fmt: skip
