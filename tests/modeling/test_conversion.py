"""Checkpoints to and from stock transformers, against its own Llama and DeepSeek classes on random weights."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from conftest import needs_a_library_without, synthetic_articles
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    set_seed,
)

from mla_experiments.cli import main
from mla_experiments.data import prepare_tokenizer
from mla_experiments.errors import UserError
from mla_experiments.manifest import write_record
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model
from mla_experiments.modeling.conversion import export_checkpoint, import_checkpoint
from mla_experiments.run_files import read_run

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
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 3.0, 4.0, 6.0], "original_max_position_embeddings": 256,
}  # fmt: skip
FACTORS = {"embedding_multiplier": 6.0, "attention_multiplier": 0.5, "residual_multiplier": 0.22, "logits_scaling": 3.0}
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
prompt, *folders = sys.argv[1:]
for folder in folders:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(torch.arange(500)[None] % 320).logits
        inputs = tokenizer(prompt, return_tensors="pt")
        text = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    save_file({"logits": logits, "text": text}, folder + "/theirs.safetensors")
    print(type(model).__name__)
"""
PROMPT = "the river sees  the Zürich — 東京 🎉\n <|endoftext|>"
EXPORTED = [  # mechanism, options, more of the config, stock class
    ("mha", {}, {}, "LlamaForCausalLM"),
    ("gqa", {"num_key_value_heads": 2}, {}, "LlamaForCausalLM"),
    ("mqa", {"head_dim": 6}, {"tie_word_embeddings": True}, "LlamaForCausalLM"),
    ("mla", {}, {"tie_word_embeddings": True}, "DeepseekV3ForCausalLM"),
    ("mla", {"q_lora_rank": 12}, {"rope_parameters": YARN}, "DeepseekV3ForCausalLM"),
]


def test_stock_transformers_alone_gives_our_logits_and_our_text(tmp_path, tokenizer):
    models, folders = [], []
    for number, (attention, options, more, _) in enumerate(EXPORTED):
        run, folder = tmp_path / f"run-{number}", tmp_path / f"out-{number}"
        models.append(saved(run, attention, attention_options=options, tokenizer=tokenizer, **more))
        assert main(["export", str(run), "--to", "hf", str(folder)]) == 0
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json", ".md"}, "no code and no pickle"
        folders.append(folder)
    asked = [sys.executable, "-c", STOCK_USER, PROMPT, *map(str, folders)]
    classes = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    assert classes == [stock for *_, stock in EXPORTED]
    inputs = AutoTokenizer.from_pretrained(tokenizer)(PROMPT, return_tensors="pt")
    for model, folder in zip(models, folders, strict=True):
        theirs = load_file(folder / "theirs.safetensors")
        with torch.inference_mode():
            torch.testing.assert_close(model(torch.arange(500)[None] % 320).logits, theirs["logits"], atol=5e-5, rtol=0)
            assert model.generate(**inputs, do_sample=False, max_new_tokens=24).tolist() == theirs["text"].tolist()


def test_mla_is_exported_in_the_layout_that_servers_assume(tmp_path):
    model = saved(tmp_path / "run", "mla", attention_options={"qk_rope_head_dim": 6, "q_lora_rank": 5})
    assert export_checkpoint(tmp_path / "run", tmp_path / "out").rope_interleave
    ours = model.state_dict()["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"][-6:]
    theirs = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"][
        -6:
    ]
    assert torch.equal(theirs[0::2], ours[:3]) and torch.equal(theirs[1::2], ours[3:])


@pytest.mark.parametrize("rotary", [4, 6])
def test_biases_of_latents_are_turned_with_their_rows(tmp_path, rotary):
    options = {"kv_lora_rank": 14, "qk_rope_head_dim": rotary, "q_lora_rank": 12}
    model = saved(tmp_path / "run", "mla", attention_bias=True, attention_options=options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    tokens = torch.randint(0, 320, (1, 40))
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
        torch.testing.assert_close(model(tokens).logits, theirs, atol=2e-5, rtol=0)


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**{**SIZE, **more}))


def phi3(**more):
    return Phi3ForCausalLM(Phi3Config(**{**SIZE, "original_max_position_embeddings": 512, **more}))


def granite(**more):
    return GraniteForCausalLM(GraniteConfig(**{**SIZE, **FACTORS, **more}))


def olmo2(**more):
    return Olmo2ForCausalLM(Olmo2Config(**{**SIZE, **more}))


def smollm3(**more):
    return SmolLM3ForCausalLM(SmolLM3Config(**{**SIZE, "no_rope_layer_interval": 2, **more}))


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
    "phi-3": lambda: phi3(num_key_value_heads=2),
    "granite": lambda: granite(),
    "granite, grouped": lambda: granite(num_key_value_heads=2, head_dim=6),
    "granite, tied": lambda: granite(tie_word_embeddings=True),
    "granite, still tied": lambda: granite(tie_word_embeddings=True, embedding_multiplier=4.0, logits_scaling=0.25),
    "olmo 2": lambda: olmo2(),
    "olmo 2, grouped, tied": lambda: olmo2(num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=YARN),
    "smollm3": lambda: smollm3(tie_word_embeddings=False),
    "smollm3, tied, the first layer without rope": lambda: smollm3(no_rope_layers=[0, 1], num_key_value_heads=1),
    "phi-3, windows and longrope": lambda: phi3(sliding_window=17, rope_parameters=LONGROPE),
}


@pytest.mark.parametrize("kind", IMPORTED)
def test_an_imported_checkpoint_gives_its_own_logits_near_zero_and_near_the_limit(tmp_path, kind):
    if kind == "deepseek-v2, yarn":
        needs_a_library_without("its DeepSeek-V2 leaves out YaRN's mscale_all_dim")
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


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_text_that_outgrows_the_short_angles_of_longrope_is_what_it_is_without_a_cache(tmp_path, options):
    set_seed(2)
    stock = phi3(rope_parameters=LONGROPE, original_max_position_embeddings=16).eval()
    stock.save_pretrained(tmp_path / "stock")
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    ours, tokens = load_model(tmp_path / "ours"), torch.randint(1, 320, (2, 9))
    asked = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, **options}
    written = ours.generate(tokens, **asked)
    assert torch.equal(written, ours.generate(tokens, **{**asked, "use_cache": False, "cache_implementation": None}))
    assert torch.equal(written, stock.generate(tokens, **{**asked, "use_cache": False, "cache_implementation": None}))


def with_prediction_layer(folder, num_layers, **shard):
    """Save a DeepSeek-V3 as it lies on the hub: its last layer predicts the token after the next; return the model."""
    set_seed(4)
    stock = deepseek_v3(num_mtp_layers=1).eval()
    stock.save_pretrained(folder, **shard)
    weights = sorted(folder.glob("*.safetensors"))[-1]
    last = f"model.layers.{num_layers}."
    more = {f"{last}{name}": torch.ones(3, 3) for name in ("eh_proj.weight", "enorm.weight", "self_attn.o_proj.weight")}
    save_file(load_file(weights) | more, weights, {"format": "pt"})
    return stock


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_layers_that_predict_further_tokens_are_left_out_and_that_is_said(tmp_path, capsys, size):
    stock = with_prediction_layer(tmp_path / "stock", SIZE["num_hidden_layers"], max_shard_size=size)
    assert main(["import", str(tmp_path / "stock"), str(tmp_path / "ours")]) == 0
    assert f"left out: model.layers.{SIZE['num_hidden_layers']}.*; num_mtp_layers=1" in capsys.readouterr().out
    ours, names = load_model(tmp_path / "ours"), set()
    for shard in (tmp_path / "ours").glob("*.safetensors"):
        names |= load_file(shard).keys()
    assert names == ours.state_dict().keys()
    tokens = torch.randint(0, 320, (1, 40))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens).logits, stock(tokens).logits, atol=2e-5, rtol=1e-5)


def test_a_shard_of_nothing_but_such_layers_is_not_copied(tmp_path):
    stock = deepseek_v3(num_mtp_layers=1)
    stock.save_pretrained(tmp_path / "stock", max_shard_size="20KB")
    index = json.loads((tmp_path / "stock" / "model.safetensors.index.json").read_text())
    name = f"model.layers.{SIZE['num_hidden_layers']}.eh_proj.weight"
    save_file({name: torch.ones(3)}, tmp_path / "stock" / "more.safetensors", {"format": "pt"})
    index["weight_map"][name] = "more.safetensors"
    (tmp_path / "stock" / "model.safetensors.index.json").write_text(json.dumps(index))
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    copied = len(list((tmp_path / "ours").glob("*.safetensors")))
    assert copied == len(list((tmp_path / "stock").glob("*.safetensors"))) - 1
    load_model(tmp_path / "ours")


def test_a_layer_too_many_that_predicts_nothing_further_is_refused(tmp_path):
    deepseek_v3(num_mtp_layers=1).save_pretrained(tmp_path / "stock")
    too_few = json.loads((tmp_path / "stock" / "config.json").read_text())
    too_few["num_hidden_layers"] -= 1
    (tmp_path / "stock" / "config.json").write_text(json.dumps(too_few))
    with pytest.raises(UserError, match=r"which config\.json does not ask for"):
        import_checkpoint(tmp_path / "stock", tmp_path / "ours")


@pytest.mark.parametrize("kind", ["llama, llama3", "deepseek-v3, yarn", "olmo 2, grouped, tied", "smollm3"])
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
        (lambda: llama(rope_parameters={**LINEAR, "partial_rotary_factor": 0.5}), "partial_rotary_factor=0.5"),
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


def llava():
    set_seed(5)
    seeing = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(text_config=LlamaConfig(**SIZE), vision_config=seeing, image_token_index=319)
    return LlavaForConditionalGeneration(config).eval()


def say_how_it_is_quantised(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))


def add_scales(folder):
    weights = load_file(folder / "model.safetensors")
    scales = {f"{name}_scale_inv": torch.ones(1, 1) for name in weights if "layers.0.mlp." in name and "lang" in name}
    save_file(weights | scales, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (say_how_it_is_quantised, "quantization_config=..."),
        (add_scales, "mlp.down_proj.weight_scale_inv, which config.json does not ask for"),
    ],
)
def test_what_a_decoder_alone_is_refused_for_it_is_in_a_model_that_sees(tmp_path, harm, said):
    llava().save_pretrained(tmp_path / "stock")
    harm(tmp_path / "stock")
    with pytest.raises(UserError, match=said):
        import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def test_the_text_decoder_of_a_model_that_sees_is_imported_and_that_is_said(tmp_path, capsys):
    stock = llava()
    stock.save_pretrained(tmp_path / "stock", max_shard_size="20KB")
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    assert "Only the text decoder (llama) of llava is imported." in capsys.readouterr().out
    tokens = torch.randint(0, 319, (1, 40))
    with torch.inference_mode():
        ours = load_model(tmp_path / "ours")(tokens).logits
        torch.testing.assert_close(ours, stock(input_ids=tokens).logits, atol=1e-4, rtol=0)


def rename_shards(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / "parts").mkdir()
    places = {name: "parts/" + shard.replace("model-", "weights-") for name, shard in index["weight_map"].items()}
    for name in set(index["weight_map"].values()):
        (folder / name).rename(folder / "parts" / name.replace("model-", "weights-"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": places}))


def add_rotary_tables(folder):
    path = folder / "model-00001-of-00003.safetensors"
    tables = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    save_file(load_file(path) | tables, path, {"format": "pt"})


def tie_and_store_both(folder):
    say_that_the_head_is_tied(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    embedding, head = (folder / index[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    tied = load_file(embedding)["model.embed_tokens.weight"].clone()
    save_file(load_file(head) | {"lm_head.weight": tied}, head, {"format": "pt"})


@pytest.mark.parametrize("unusual", [rename_shards, add_rotary_tables, tie_and_store_both])
def test_what_transformers_reads_of_unusual_weight_files_is_read(tmp_path, unusual):
    llama().save_pretrained(tmp_path / "stock", max_shard_size="60KB")
    unusual(tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    tokens = torch.randint(0, 320, (1, 40))
    torch.testing.assert_close(load_model(tmp_path / "ours")(tokens).logits, stock(tokens).logits)
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "back")(tokens).logits, stock(tokens).logits)


def test_how_a_checkpoint_wants_to_generate_is_kept(tmp_path):
    llama().save_pretrained(tmp_path / "stock")
    wanted = {"eos_token_id": [5, 6], "temperature": 0.6, "do_sample": False}
    (tmp_path / "stock" / "generation_config.json").write_text(json.dumps(wanted))
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    for folder in ("ours", "back"):
        assert json.loads((tmp_path / folder / "generation_config.json").read_text()) == wanted
    assert load_model(tmp_path / "ours").generation_config.eos_token_id == [5, 6]


def byte_level_as_llama_3():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer, ["<|begin|>", "<|end|>"], tokenizers.pre_tokenizers.ByteLevel.alphabet()


def with_byte_fallback_as_llama_2():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = tokenizers.normalizers.Sequence(spaces)
    return tokenizer, ["<|begin|>", "<|end|>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], []


@pytest.mark.parametrize("make", [byte_level_as_llama_3, with_byte_fallback_as_llama_2])
@pytest.mark.parametrize("declared", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_a_tokenizer_comes_along_and_still_begins_texts_as_it_did(tmp_path, articles, make, declared):
    made, special, alphabet = make()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(articles, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    llama().save_pretrained(tmp_path / "stock")
    made.save(str(tmp_path / "stock" / "tokenizer.json"))
    tokens = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": "{{ messages[0]['content'] }}"}
    (tmp_path / "stock" / "tokenizer_config.json").write_text(json.dumps({**tokens, "tokenizer_class": declared}))
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    theirs, ours, back = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("stock", "ours", "back"))
    for text in ("the river", PROMPT):
        assert theirs(text)["input_ids"] == ours(text)["input_ids"] == back(text)["input_ids"]
    assert theirs("the")["input_ids"][0] == theirs.bos_token_id == ours.bos_token_id
    assert ours.chat_template == theirs.chat_template


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


def say_that_the_head_is_tied(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))


def garbled_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": 3}}')


def garbled_generation(folder):
    (folder / "generation_config.json").write_text("{")


def deep_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"a": ' + "[" * 100_000)


def token_that_is_no_number(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": ["y"]}')


def dtype_that_is_none(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": 0}))


def whole_numbers(folder):
    path = folder / "model-00001-of-00003.safetensors"
    save_file({name: (100 * weight).to(torch.int8) for name, weight in load_file(path).items()}, path)


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
        (say_that_the_head_is_tied, "lm_head.weight is stored and is not model.embed_tokens.weight"),
        (garbled_index, "model.safetensors.index.json is damaged"),
        (deep_index, "model.safetensors.index.json is damaged"),
        (garbled_generation, "generation_config.json cannot be read"),
        (token_that_is_no_number, "eos_token_id='y' is no number of a token"),
        (dtype_that_is_none, "dtype=0 is no dtype of torch"),
        (whole_numbers, "in I8, and weights are read in F64, F32, F16, BF16"),
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


def test_neither_the_model_nor_the_working_folder_nor_a_file_is_ever_overwritten(tmp_path, capsys, monkeypatch):
    saved(tmp_path / "runs" / "mha", "mha")
    (tmp_path / "file").write_text("keep")
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "runs")
    capsys.readouterr()
    for target in ("mha", ".", "..", "/", "", "mha/../../runs", "../file", "../file/sub"):
        assert main(["export", "mha", target, "--overwrite"]) == 2, target
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and printed.count("\n") == 1, printed
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_link_to_a_folder_is_followed(tmp_path):
    saved(tmp_path / "run", "mha")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real", "run"]


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    saved(tmp_path / "run", "mha")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("shutil.copyfile", full)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--overwrite"]) == 2
    printed = capsys.readouterr().err
    assert "could not be written" in printed and "No space left on device" in printed
    assert sorted(path.name for path in tmp_path.rglob("*") if "run" not in path.parts) == ["mine.txt", "out"]


def test_a_run_is_exported_whole_or_not_at_all(train, capsys):
    assert train("mla") == 0
    folder = Path("weights/mla")
    record, weights = read_run(folder), (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-8] + bytes(8))
    assert main(["export", "mla", "out"]) == 2
    assert "model.safetensors is not what training wrote there" in capsys.readouterr().err
    (folder / "model.safetensors").write_bytes(weights)
    write_record(folder / "run.json", {**record, "status": "running"})
    assert main(["export", "mla", "out"]) == 2
    assert "weights/mla is a run that has not finished" in capsys.readouterr().err
    assert main(["export", f"{folder}/checkpoint-8", "out"]) == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["export"], "the following arguments are required: RUN, OUT"),
        (["export", "{run}", "{out}", "--to", "onnx"], "to=onnx is unknown"),
        (["export", "{learned}", "{out}"], "positions=learned exists in no stock model"),
        (["export", "{odd}", "{out}"], "no stock llama is like this model"),
        (["import", "{run}", "{out}"], "is a model of ours already"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, capsys, argv, said):
    saved(tmp_path / "run", "mha")
    saved(tmp_path / "learned", "mha", positions="learned")
    saved(tmp_path / "odd", "mha", hidden_size=30, attention_options={"head_dim": 8})
    places = {name: str(tmp_path / name) for name in ("run", "learned", "odd", "out")}
    assert main([word.format(**places) for word in argv]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer, capsys):
    saved(tmp_path / "run", "mha", vocab_size=100, tokenizer=tokenizer)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "320 entries up to number 319, more than vocab_size=100" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
