"""A GGUF file gives our logits by llama.cpp's arithmetic, and our tokens; what it cannot hold is refused by name."""

import json

import gguf
import gguf_reference
import numpy as np
import pytest
import torch
from conftest import synthetic_articles
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from mla_experiments.cli import main
from mla_experiments.data.tokenizer import as_transformers_tokenizer, train_bpe
from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model
from mla_experiments.modeling.export import stock_config
from mla_experiments.modeling.stock.gguf import named

SIZE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 3e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 3e5, "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 3e4, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 3e5, "original_max_position_embeddings": 64, "factor": 2.0,
    "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
}  # fmt: skip
LOW_RANK = {"attention_options": {"q_lora_rank": 12, "qk_rope_head_dim": 8}}
MODELS = {  # mechanism, more of its config, llama.cpp's architecture
    "mha": ("mha", {}, "llama"),
    "gqa, llama3": ("gqa", {"rope_parameters": LLAMA3}, "llama"),
    "mqa, tied": ("mqa", {"tie_word_embeddings": True}, "llama"),
    "mha, wide heads": ("mha", {"attention_options": {"head_dim": 16}}, "llama"),
    "mha, linear": ("mha", {"rope_parameters": LINEAR}, "llama"),
    "mha, yarn": ("mha", {"rope_parameters": YARN}, "llama"),
    "mha, yarn, a factor": ("mha", {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16}}, "llama"),
    "gqa, biases": ("gqa", {"attention_bias": True, "rope_parameters": {**YARN}}, "qwen2"),
    "gqa, norms": ("gqa", {"qk_norm": True, "rope_parameters": LINEAR}, "qwen3"),
    "mla": ("mla", {}, "deepseek2"),
    "mla, tied, low rank": ("mla", {"tie_word_embeddings": True, **LOW_RANK}, "deepseek2"),
    "mla, interleaved": ("mla", {"rope_interleave": True}, "deepseek2"),
    "mla, scaled": ("mla", {"attention_options": {"latent_scale": True, "q_lora_rank": 12}}, "deepseek2"),
    "mla, linear": ("mla", {"rope_parameters": LINEAR, **LOW_RANK}, "deepseek2"),
    "mla, yarn": ("mla", {"rope_parameters": YARN, **LOW_RANK}, "deepseek2"),
    "mla, yarn of V3": ("mla", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}, "deepseek2"),
    "mla, yarn of V2": ("mla", {"rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}, "deepseek2"),
    "mla, yarn, unequal": ("mla", {"rope_parameters": {**YARN, "mscale": 1.2, "mscale_all_dim": 0.8}}, "deepseek2"),
}
READ_BY_TRANSFORMERS = ("mha", "mqa, tied")  # which reads no scaling, and of other models no width of heads
TEXT = "it's 2024: DON'T stop\n\n  the river é 東京 🎉\t sees 3.14 \r\n<|endoftext|> \u00a0end  "


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a small trained tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    as_transformers_tokenizer(train_bpe(synthetic_articles(24), 310)).save_pretrained(folder)
    return folder


def saved(folder, tokenizer, attention="mha", **more):
    """Save one of our models, with numbers in its norms and biases too, and return it."""
    set_seed(1)
    model = DecoderForCausalLM(DecoderConfig(**{**SIZE, **more}, attention=attention)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, max_shard_size="20KB")
    for path in tokenizer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return model


def logits_of(model, count=100):
    with torch.inference_mode():
        return model(torch.arange(count)[None] * 3 % 320).logits[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_file_gives_our_logits_by_the_arithmetic_of_llama_cpp(tmp_path, tokenizer, capsys, name):
    attention, more, architecture = MODELS[name]
    model = saved(tmp_path / "run", tokenizer, attention, **more)
    out = tmp_path / "out.gguf"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "gguf", "--type", "f32"]) == 0
    assert f"{architecture}, f32" in capsys.readouterr().out
    expected = logits_of(model)
    found = torch.from_numpy(gguf_reference.logits(out, np.arange(100) * 3 % 320)).float()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    if name in READ_BY_TRANSFORMERS:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=out.name).eval()
        torch.testing.assert_close(logits_of(theirs), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("kind", "bound"), [("f16", 0.02), ("bf16", 0.15), ("q8_0", 0.3)])
@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_matrices_are_of_the_type_that_was_asked_for_and_vectors_of_f32(tmp_path, tokenizer, attention, kind, bound):
    options = {"attention_options": {"qk_nope_head_dim": 32, "v_head_dim": 32}} if attention == "mla" else {}
    model = saved(tmp_path / "run", tokenizer, attention, **options)
    out = tmp_path / "out.gguf"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "gguf", "--type", kind]) == 0
    file = gguf_reference.File(out)
    for name, tensor in file.tensors.items():
        assert file.types[name] == ("F32" if tensor.ndim == 1 else kind.upper())
    assert gguf.LlamaFileType(file.fields["general.file_type"]).name == f"MOSTLY_{kind.upper()}"
    found = torch.from_numpy(gguf_reference.logits(out, np.arange(100) * 3 % 320)).float()
    error = (found - logits_of(model)).abs().max().item()
    assert 0 < error < bound * logits_of(model).std().item()


def test_the_tokenizer_comes_along_whole(tmp_path, tokenizer):
    saved(tmp_path / "run", tokenizer)
    out = tmp_path / "out.gguf"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "gguf"]) == 0
    fields = gguf_reference.File(out).fields
    ours = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    words = [ours.id_to_token(number) for number in range(310)] + [f"[PAD{number}]" for number in range(310, 320)]
    assert fields["tokenizer.ggml.tokens"] == words
    kinds = [gguf.TokenType(kind).name for kind in fields["tokenizer.ggml.token_type"]]
    assert kinds == ["CONTROL"] + ["NORMAL"] * 309 + ["UNUSED"] * 10
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")] == [0, 0, 0]
    assert not fields["tokenizer.ggml.add_bos_token"] and not fields["tokenizer.ggml.add_eos_token"]
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=out.name)
    plain = TEXT.replace("<|endoftext|>", "")
    assert theirs(plain)["input_ids"] == ours.encode(plain).ids


def test_a_tokenizer_that_begins_texts_says_so(tmp_path, tokenizer):
    saved(tmp_path / "run", tokenizer)
    path = tmp_path / "run" / "tokenizer.json"
    described = json.loads(path.read_text())
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    described["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    path.write_text(json.dumps(described))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.gguf"), "--to", "gguf"]) == 0
    fields = gguf_reference.File(tmp_path / "out.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"] and not fields["tokenizer.ggml.add_eos_token"]


def with_splitting(folder, change):
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


REFUSED = {
    "sliding_window=16": ("mha", {"sliding_window": 16}),
    "model_type=olmo2": ("mha", {"norm_placement": "post", "qk_norm": "whole"}),
    "model_type=smollm3": ("mha", {"no_rope_layers": [0] * 2}),
    "rope_type=dynamic": ("mha", {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}),
    "rope_type=longrope": ("mha", {"rope_parameters": LONGROPE}),
    "rope_type=llama3": ("gqa", {"rope_parameters": LLAMA3, "qk_norm": True}),
    "truncate=False": ("mha", {"rope_parameters": {**YARN, "truncate": False}}),
    "rms_norm_eps=1e-05": ("mla", {"rms_norm_eps": 1e-5}),
    "q_lora_rank=12 with num_hidden_layers=26": ("mla", {"num_hidden_layers": 26, **LOW_RANK}),
    "head_dim=16": ("gqa", {"attention_bias": True, "attention_options": {"head_dim": 16}}),
    "a row of blk.0.attn_k_b.weight has 8": ("mla", {}),
    "attention=tpa": ("tpa", {}),
    "positions=learned": ("mla", {"positions": "learned"}),
    "output_gate=head": ("mha", {"output_gate": "head"}),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_gguf_cannot_hold_is_refused_by_name(tmp_path, tokenizer, capsys, said):
    attention, more = REFUSED[said]
    saved(tmp_path / "run", tokenizer, attention, **more)
    out = tmp_path / "out" / "model.gguf"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "gguf", "--type", "q8_0"]) == 2
    assert said in capsys.readouterr().err
    assert not out.parent.exists() or not any(out.parent.iterdir())


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("splits text in a way", lambda tokenizer: tokenizer.update(pre_tokenizer={"type": "Whitespace"})),
        ("normalizer", lambda tokenizer: tokenizer.update(normalizer={"type": "Lowercase"})),
        ("ignore_merges=True", lambda tokenizer: tokenizer["model"].update(ignore_merges=True)),
        ("another kind than byte-level BPE", lambda tokenizer: tokenizer["model"].update(byte_fallback=True)),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(tmp_path, tokenizer, capsys, said, change):
    saved(tmp_path / "run", tokenizer)
    with_splitting(tmp_path / "run", change)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.gguf"), "--to", "gguf"]) == 2
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--to", "onnx"], "to=onnx is unknown"),
        (["--to", "gguf", "--type", "q4_0"], "type=q4_0 is unknown"),
        (["--to", "hf", "--type", "f16"], "type=f16 is for --to gguf"),
    ],
)
def test_a_form_that_is_not_there_is_refused(tmp_path, tokenizer, capsys, argv, said):
    saved(tmp_path / "run", tokenizer)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.gguf"), *argv]) == 2
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_stands_there_is_kept_unless_told(tmp_path, tokenizer, capsys):
    saved(tmp_path / "run", tokenizer)
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    argv = ["export", str(tmp_path / "run"), str(out), "--to", "gguf"]
    assert main(argv) == 2 and out.read_text() == "mine"
    assert main([*argv, "--overwrite"]) == 0 and out.read_bytes()[:4] == b"GGUF"
    assert main(["export", str(tmp_path / "run"), str(tmp_path), "--to", "gguf", "--overwrite"]) == 2
    weights = next((tmp_path / "run").glob("*.safetensors"))
    assert main(["export", str(tmp_path / "run"), str(weights), "--to", "gguf", "--overwrite"]) == 2
    said = capsys.readouterr().err
    for reason in ("is there already", "is a folder", "is a file of the model"):
        assert reason in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "run"]


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_same_model(tmp_path, tokenizer, name):
    attention, more, _ = MODELS[name]
    model = saved(tmp_path / "run", tokenizer, attention, **more)
    out, back = tmp_path / "out.gguf", tmp_path / "back"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "gguf", "--type", "f32"]) == 0
    code = main(["import", str(out), str(back)])
    if "llama3" in name:  # whose description the file does not hold
        assert code == 2 and not back.exists()
        return
    assert code == 0
    torch.testing.assert_close(logits_of(load_model(back)), logits_of(model), atol=5e-5, rtol=0)
    ours = AutoTokenizer.from_pretrained(back)
    assert (
        ours(TEXT, split_special_tokens=True)["input_ids"]
        == AutoTokenizer.from_pretrained(tokenizer)(TEXT)["input_ids"]
    )
    assert ours.decode(ours(TEXT)["input_ids"]) == TEXT and (ours.bos_token_id, ours.eos_token_id) == (0, 0)


def with_kind(path, kind):
    """Say of the first tensor of a file that it is of another type, of as many bytes or fewer."""
    content = bytearray(path.read_bytes())
    name = b"token_embd.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    content[place : place + 4] = int(kind).to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("said", "harm"),
    [
        ("cannot be read", lambda path: path.write_bytes(path.read_bytes()[:-5000])),
        ("cannot be read", lambda path: path.write_bytes(b"GGUF")),
        ("does not begin as a GGUF file does", lambda path: path.write_bytes(b"nothing of the kind" * 100)),
        ("llamb", lambda path: path.write_bytes(
            path.read_bytes().replace(b"llama", b"llamb"))),
        ("which the gguf package does not make plain", lambda path: with_kind(path, gguf.GGMLQuantizationType.I8)),
        ("tokenizer gpt2, gpt-3 is not known here", lambda path: path.write_bytes(
            path.read_bytes().replace(b"gpt-2", b"gpt-3"))),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_sentence_and_leaves_nothing(tmp_path, tokenizer, capsys, said, harm):
    saved(tmp_path / "run", tokenizer)
    out = tmp_path / "out.gguf"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "gguf"]) == 0
    harm(out)
    assert main(["import", str(out), str(tmp_path / "back")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "back").exists()


def test_a_weight_that_llama_cpp_has_no_name_for_is_refused():
    config = DecoderConfig(**SIZE, attention="mha")
    with pytest.raises(UserError, match=r"model\.sidecar\.weight has no name in llama\.cpp's llama"):
        list(named([("model.sidecar.weight", torch.zeros(2))], config, stock_config(config)))
