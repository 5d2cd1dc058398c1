"""Checkpoints to and from stock transformers, against its own Llama and DeepSeek classes on random weights."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import synthetic_articles
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from mla_experiments.cli import main
from mla_experiments.data import prepare_tokenizer
from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model
from mla_experiments.modeling.conversion import export_checkpoint, import_checkpoint

SIZE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6, "v_head_dim": 10,
    "first_k_dense_replace": 2, "num_key_value_heads": 4,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a small trained tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    from mla_experiments.data import prepare_corpus

    text = folder / "text.txt"
    text.write_text("".join(synthetic_articles(24)))
    prepare_corpus(folder / "corpus", str(text), "text")
    prepare_tokenizer(folder / "tokenizer", folder / "corpus", 320)
    return folder / "tokenizer"


def saved(folder, attention="mla", *, tokenizer=None, **more):
    """Save one of our models with random weights and return it."""
    set_seed(1)
    model = DecoderForCausalLM(DecoderConfig(**{**SIZE, "attention": attention, **more})).eval()
    model.save_pretrained(folder)
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((tokenizer / name).read_bytes())
    return model


STOCK_USER = """
import sys
sys.modules["mla_experiments"] = None  # as where it is not installed
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("the river sees the", return_tensors="pt")
with torch.inference_mode():
    long = torch.arange(500)[None] % 320
    save_file({"logits": model(long).logits, "text": model.generate(**inputs, do_sample=False, max_new_tokens=24)},
              sys.argv[2])
print(type(model).__name__)
"""


@pytest.mark.parametrize(
    ("attention", "options", "stock"),
    [
        ("mha", {}, "LlamaForCausalLM"),
        ("gqa", {"num_key_value_heads": 2}, "LlamaForCausalLM"),
        ("mqa", {"head_dim": 6}, "LlamaForCausalLM"),
        ("mla", {}, "DeepseekV3ForCausalLM"),
        ("mla", {"q_lora_rank": 12}, "DeepseekV3ForCausalLM"),
    ],
)
def test_stock_transformers_alone_gives_our_logits_and_our_text(tmp_path, tokenizer, attention, options, stock):
    from transformers import AutoTokenizer

    model = saved(tmp_path / "run", attention, attention_options=options, tokenizer=tokenizer)
    assert main(["export", str(tmp_path / "run"), "--to", "hf", str(tmp_path / "out")]) == 0
    asked = [sys.executable, "-c", STOCK_USER, str(tmp_path / "out"), str(tmp_path / "theirs.safetensors")]
    assert subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip() == stock
    theirs = load_file(tmp_path / "theirs.safetensors")
    inputs = AutoTokenizer.from_pretrained(tokenizer)("the river sees the", return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(model(torch.arange(500)[None] % 320).logits, theirs["logits"], atol=1e-5, rtol=0)
        assert model.generate(**inputs, do_sample=False, max_new_tokens=24).tolist() == theirs["text"].tolist()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".partial")) for name in names)


def test_mla_is_exported_in_the_layout_that_servers_assume(tmp_path):
    model = saved(tmp_path / "run", "mla", attention_options={"qk_rope_head_dim": 6, "q_lora_rank": 5})
    assert export_checkpoint(tmp_path / "run", tmp_path / "out").rope_interleave
    ours = model.state_dict()["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"][-6:]
    theirs = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"][
        -6:
    ]
    assert torch.equal(theirs[0::2], ours[:3]) and torch.equal(theirs[1::2], ours[3:])


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**{**SIZE, **more}))


def deepseek_v2(**more):
    return DeepseekV2ForCausalLM(DeepseekV2Config(**{**SIZE, **LATENT, **more}))


def deepseek_v3(**more):
    return DeepseekV3ForCausalLM(DeepseekV3Config(**{**SIZE, **LATENT, "num_mtp_layers": 0, **more}))


IMPORTED = {
    "llama": lambda: llama(),
    "llama, grouped": lambda: llama(num_key_value_heads=2, rms_norm_eps=1e-5),
    "llama, one key": lambda: llama(num_key_value_heads=1, head_dim=6),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, llama3": lambda: llama(rope_parameters=LLAMA3),
    "llama, linear": lambda: llama(rope_parameters=LINEAR),
    "llama, yarn": lambda: llama(rope_parameters=YARN),
    "llama, yarn with factor": lambda: llama(rope_parameters={**YARN, "attention_factor": 1.3}),
    "deepseek-v2": lambda: deepseek_v2(q_lora_rank=None),
    "deepseek-v2, yarn": lambda: deepseek_v2(
        q_lora_rank=9, rope_parameters={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
    ),
    "deepseek-v3": lambda: deepseek_v3(q_lora_rank=9),
    "deepseek-v3, half-split": lambda: deepseek_v3(q_lora_rank=None, rope_interleave=False),
    "deepseek-v3, yarn": lambda: deepseek_v3(
        q_lora_rank=9, rope_parameters={**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    ),
    "deepseek-v3, yarn, unequal": lambda: deepseek_v3(
        q_lora_rank=9, rope_parameters={**YARN, "mscale": 1.2, "mscale_all_dim": 0.8}
    ),
}


@pytest.mark.parametrize("kind", IMPORTED)
def test_an_imported_checkpoint_gives_its_own_logits_near_zero_and_near_the_limit(tmp_path, kind):
    set_seed(2)
    stock = IMPORTED[kind]().eval()
    stock.save_pretrained(tmp_path / "stock", max_shard_size="20KB")
    assert len(list((tmp_path / "stock").glob("*.safetensors"))) > 1
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    tokens = torch.randint(0, 320, (2, 9))
    for first in (0, SIZE["max_position_embeddings"] - 9):
        positions = torch.arange(first, first + 9)[None]
        with torch.inference_mode():
            expected = stock(tokens, position_ids=positions).logits
            torch.testing.assert_close(ours(tokens, position_ids=positions).logits, expected, atol=2e-5, rtol=1e-5)
    with torch.inference_mode():  # attention from position 0 to the last
        tokens = torch.randint(0, 320, (1, SIZE["max_position_embeddings"]))
        torch.testing.assert_close(ours(tokens).logits, stock(tokens).logits, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama, llama3", "deepseek-v3, yarn"])
def test_there_and_back_is_the_same_model(tmp_path, kind):
    set_seed(3)
    stock = IMPORTED[kind]().eval()
    stock.save_pretrained(tmp_path / "stock")
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(back) is type(stock)
    tokens = torch.randint(0, 320, (1, 40))
    assert torch.equal(back(tokens).logits, stock(tokens).logits)


def test_bfloat16_weights_stay_so(tmp_path):
    llama().bfloat16().save_pretrained(tmp_path / "stock")
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    assert load_model(tmp_path / "ours").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: llama(attention_bias=True), "attention_bias=True"),
        (lambda: llama(mlp_bias=True), "mlp_bias=True"),
        (lambda: llama(hidden_act="gelu"), "hidden_act=gelu"),
        (lambda: llama(rope_parameters={**LINEAR, "rope_type": "dynamic"}), "rope_type='dynamic'"),
        (lambda: deepseek_v3(q_lora_rank=4, attention_bias=True), "attention_bias=True"),
        (
            lambda: deepseek_v3(first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
                                topk_group=1, moe_intermediate_size=8),
            "mixtures of experts",
        ),
        (
            lambda: deepseek_v2(first_k_dense_replace=0, n_routed_experts=4, num_experts_per_tok=2,
                                moe_intermediate_size=8),
            "mixtures of experts",
        ),
    ],
)  # fmt: skip
def test_what_our_decoder_lacks_is_refused_by_name(tmp_path, make, said):
    make().save_pretrained(tmp_path / "stock")
    with pytest.raises(UserError, match=said):
        import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def break_config(folder):
    (folder / "config.json").unlink()


def garble_config(folder):
    (folder / "config.json").write_text("{")


def unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "nobody_knows"}))


def other_architecture(folder):
    GPT2Config().save_pretrained(folder)


def truncated_shard(folder):
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lost_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def other_shapes(folder):
    path = folder / "model-00001-of-00003.safetensors"
    weights = load_file(path)
    name = min(weights)
    save_file({**weights, name: torch.zeros(3, 3)}, path)


def too_many_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))


def too_few_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def only_a_pickle(folder):
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (break_config, "holds no config.json"),
        (garble_config, "config.json cannot be read"),
        (unknown_architecture, "nobody_knows"),
        (other_architecture, "model_type=gpt2"),
        (truncated_shard, "model-00002-of-00003.safetensors is damaged"),
        (lost_shard, "model-00002-of-00003.safetensors is missing"),
        (other_shapes, "of shape (3, 3), but config.json asks for"),
        (too_many_layers, "which config.json does not ask for"),
        (too_few_layers, "lacks model.layers.2"),
        (only_a_pickle, "holds no model.safetensors"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence_and_leaves_nothing(tmp_path, capsys, harm, said):
    llama().save_pretrained(tmp_path / "stock", max_shard_size="60KB")
    harm(tmp_path / "stock")
    capsys.readouterr()
    assert main(["import", str(tmp_path / "stock"), str(tmp_path / "ours")]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def test_an_output_folder_in_use_is_kept_unless_told(tmp_path, capsys):
    saved(tmp_path / "run", "mha")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "is there already and is kept" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--overwrite"]) == 0
    assert (tmp_path / "out" / "config.json").is_file() and not (tmp_path / "out" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["export"], "the following arguments are required: RUN, OUT"),
        (["export", "{run}", "{out}", "--to", "gguf"], "to=gguf is unknown"),
        (["export", "{learned}", "{out}"], "positions=learned exists in no stock model"),
        (["import", "{run}", "{out}"], "is a model of ours already"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, capsys, argv, said):
    saved(tmp_path / "run", "mha")
    saved(tmp_path / "learned", "mha", positions="learned")
    places = {name: str(tmp_path / name) for name in ("run", "learned", "out")}
    assert main([word.format(**places) for word in argv]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer, capsys):
    saved(tmp_path / "run", "mha", vocab_size=100, tokenizer=tokenizer)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "320 entries, more than vocab_size=100" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
