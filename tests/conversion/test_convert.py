"""`convert` from folder to folder: what it writes, what stock software makes of it, and what it refuses."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import command, synthetic_articles
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from mla_experiments.cli import main
from mla_experiments.conversion import job
from mla_experiments.conversion.calibration import check_apart, read_texts, runs_of
from mla_experiments.data.synthetic import TASKS
from mla_experiments.errors import UserError
from mla_experiments.evaluation import recall
from mla_experiments.evaluation.perplexity import score_documents
from mla_experiments.evaluation.results import load_with_tokenizer
from mla_experiments.manifest import file_hash, scratch_for
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model

SIZE = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ORIGINAL = 2 * 2 * 3 * 8 * 4  # bytes: layers, keys and values, groups, their width, single precision
QUICK = {"corpus": "text.txt", "calibration_tokens": 512, "held_out_tokens": 600, "sequence_length": 32}


@pytest.fixture
def place(prepared, tmp_path, monkeypatch):
    """A folder with a random GQA model, `gqa`, and a text of forty articles, `text.txt`."""
    monkeypatch.chdir(tmp_path)
    save("gqa", prepared, "gqa", attention_options={"num_key_value_heads": 3})
    (tmp_path / "text.txt").write_text("".join(synthetic_articles(40)), encoding="utf-8")
    return tmp_path


def save(name, prepared, attention, **more):
    torch.manual_seed(1)
    model = DecoderForCausalLM(DecoderConfig(**{**SIZE, **more, "attention": attention}))
    model.save_pretrained(name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (prepared.parent / name / file).write_bytes((prepared / "tokenizer" / file).read_bytes())


def convert(*places, **flags) -> int:
    return main(command("convert", *(places or ("gqa", "out")), **{**QUICK, **flags}))


def test_what_is_written_is_a_model_with_a_record_a_table_and_a_figure(place, capsys):
    assert convert(cache_bytes=ORIGINAL // 2, curve=True) == 0
    said = capsys.readouterr().out
    record = json.loads((place / "out/conversion.json").read_text())
    names = [step["step"] for step in record["steps"]]
    assert names == ["original", "stacked, concentrated", "rope left off", "low rank", "fitted", "constant channel"]
    assert all(name in said for name in names)
    assert [step["numbers"] for step in record["steps"]][::5] == [48, 24] and len(record["curve"]) == 6
    assert len(record["calibration"]["sha256"]) == 64 and record["original"]["name"] == "gqa"
    card = (place / "out/README.md").read_text()
    assert "constant channel" in card and (place / "out/loss-against-cache.png").stat().st_size > 10_000
    model, _ = load_with_tokenizer(place / "out")
    assert sum(model.model.layers[0].self_attn.cache_parts().values()) * 2 * 4 == ORIGINAL // 2
    assert main(command("generate", model="out", prompt="the river", max_new_tokens=4)) == 0


def test_scores_of_the_original_are_those_of_the_evaluation(place):
    assert convert(cache_bytes=ORIGINAL // 2, sequence_length=64) == 0
    first, *later = json.loads((place / "out/conversion.json").read_text())["steps"]
    model, tokenizer = load_with_tokenizer(place / "gqa")
    texts = [text for number, text in enumerate(synthetic_articles(40)) if number % 4 == 3]
    cut, left = [], QUICK["held_out_tokens"]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: min(64, left)]
        cut, left = ([*cut, tokenizer.decode(ids)], left - len(ids)) if ids else (cut, left)
    assert first["nats"] == pytest.approx(
        [one.nats for one in score_documents(model, tokenizer, cut).documents], rel=1e-4
    )
    assert first["divergence"] == [0.0] * len(cut)
    assert all(value > 0 for value in later[-1]["divergence"])


def test_probes_after_each_step_are_those_of_the_evaluation(place, prepared, monkeypatch, capsys):
    """Of a task that the tokenizer has the words for, and that a model gets right which says again what it reads."""
    few = TASKS["copy"](longest=2, characters=1)
    options = {"num_key_value_heads": 3}
    save("gqa", prepared, "gqa", attention_options=options, tie_word_embeddings=True, initializer_range=0.002)
    monkeypatch.setattr(recall, "task_named", lambda name, _: few)
    assert convert(cache_bytes=ORIGINAL // 4, probes="copy") == 0
    assert "copy, % right" in capsys.readouterr().out and "copy, % right" in (place / "out/README.md").read_text()
    steps = json.loads((place / "out/conversion.json").read_text())["steps"]
    for name, step in (("gqa", steps[0]), ("out", steps[-1])):
        asked = recall.probe(*load_with_tokenizer(place / name), ["copy"])
        (scores,) = (scores for _, condition, scores in asked if condition == "as usual")
        right = scores.tokens.sum() - scores.wrong.sum()
        assert step["recall"] == {"copy": pytest.approx(right / scores.tokens.sum())} and len(scores.tokens) > 100
    assert 0 < steps[0]["recall"]["copy"] < 1


def test_the_same_command_writes_the_same_weights(place):
    for name in ("first", "second"):
        assert convert("gqa", name, cache_bytes=ORIGINAL // 2) == 0
    assert file_hash(place / "first/model.safetensors") == file_hash(place / "second/model.safetensors")


def test_full_size_costs_nothing(place):
    assert convert(kv_lora_rank=24 + 1, qk_rope_head_dim=24) == 0
    steps = json.loads((place / "out/conversion.json").read_text())["steps"]
    assert sum(steps[-1]["divergence"]) == pytest.approx(0, abs=1e-3)
    assert steps[-1]["nats"] == pytest.approx(steps[0]["nats"], rel=1e-4)


STOCK_USER = """
import sys
sys.modules["mla_experiments"] = None  # as where it is not installed
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("stock")
with torch.inference_mode():
    save_file({"logits": model(torch.arange(60)[None]).logits}, "theirs.safetensors")
print(type(model).__name__)
"""


def test_a_converted_model_is_a_stock_deepseek(place):
    assert convert(cache_bytes=ORIGINAL // 2) == 0
    assert main(["export", "out", "stock"]) == 0
    done = subprocess.run([sys.executable, "-c", STOCK_USER], cwd=place, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["DeepseekV3ForCausalLM"]
    model, _ = load_with_tokenizer(place / "out")
    with torch.inference_mode():
        ours = model(torch.arange(60)[None]).logits
    torch.testing.assert_close(load_file(place / "theirs.safetensors")["logits"], ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention_bias", [False, True])
def test_low_rank_queries_are_a_stock_deepseek_s_too(place, prepared, attention_bias):
    save("gqa", prepared, "gqa", attention_options={"num_key_value_heads": 3}, attention_bias=attention_bias)
    model, _ = load_with_tokenizer(place / "gqa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(place / "gqa")
    assert convert(cache_bytes=ORIGINAL // 2, q_lora_rank=20) == 0
    names = [step["step"] for step in json.loads((place / "out/conversion.json").read_text())["steps"]]
    assert names[3:] == ["low rank", "queries of low rank", "fitted", "constant channel"]
    assert main(["export", "out", "stock"]) == 0
    stock, (ours, _) = AutoModelForCausalLM.from_pretrained(place / "stock"), load_with_tokenizer(place / "out")
    assert (type(stock).__name__, stock.config.q_lora_rank) == ("DeepseekV3ForCausalLM", 20)
    tokens = torch.arange(60)[None]
    with torch.inference_mode():
        wanted = ours(tokens).logits
        torch.testing.assert_close(stock(tokens).logits, wanted, atol=1e-4, rtol=0)
        past = ours(tokens[:, :40], use_cache=True).cache
        later = ours(tokens[:, 40:], cache=past).logits
    torch.testing.assert_close(later, wanted[:, 40:], atol=1e-4, rtol=0)


def test_without_a_norm_queries_of_low_rank_have_none(place):
    assert convert(cache_bytes=ORIGINAL // 2, q_lora_rank=20, latent_norm="none") == 0
    names = load_file(place / "out/model.safetensors").keys()
    assert "model.layers.0.self_attn.q_b_proj.weight" in names and not [name for name in names if "a_layernorm" in name]


def test_layers_may_have_latents_of_other_widths_in_a_model_of_ours_alone(place, capsys):
    model, _ = load_with_tokenizer(place / "gqa")
    with torch.no_grad():  # the first layer's values are of two directions
        first = model.model.layers[0].self_attn.v_proj.weight
        first.copy_(first[:, :2] @ torch.randn(2, 48))
    model.save_pretrained(place / "gqa")
    assert convert(cache_bytes=ORIGINAL // 2, ranks="by-layer", q_lora_rank=20) == 0
    model, _ = load_with_tokenizer(place / "out")
    kept = [layer.self_attn.cache_elements_per_token() for layer in model.model.layers]
    assert sum(kept) * 4 == ORIGINAL // 2 and kept[0] < kept[1]
    assert json.loads((place / "out/conversion.json").read_text())["steps"][-1]["numbers"] == 24
    tokens = torch.arange(60)[None]
    with torch.inference_mode():
        past = model(tokens[:, :40], use_cache=True).cache
        later = model(tokens[:, 40:], cache=past).logits
        torch.testing.assert_close(later, model(tokens).logits[:, 40:], atol=1e-4, rtol=0)
    for to in ("hf", "gguf"):
        assert main(["export", "out", "stock", "--to", to]) == 2
        assert "layer_options make layers differ" in capsys.readouterr().err
    assert main(["export", "out", "stock", "--widths", "64", "32"]) == 2
    assert "layer_options make latents differ" in capsys.readouterr().err


def test_a_granite_is_converted_as_what_it_is_imported_to(place):
    torch.manual_seed(3)
    config = GraniteConfig(
        **SIZE, num_key_value_heads=3, tie_word_embeddings=True, embedding_multiplier=6.0, attention_multiplier=0.5,
        residual_multiplier=0.4, logits_scaling=2.0,
    )  # fmt: skip
    granite = GraniteForCausalLM(config).eval()
    granite.save_pretrained(place / "granite")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (place / "granite" / file).write_bytes((place / "gqa" / file).read_bytes())
    assert convert("granite", "out", kv_lora_rank=24 + 1, qk_rope_head_dim=24) == 0  # full size
    assert main(["export", "out", "stock"]) == 0
    tokens = torch.arange(60)[None]
    with torch.inference_mode():
        made = AutoModelForCausalLM.from_pretrained(place / "stock")(tokens).logits
        torch.testing.assert_close(made, granite(tokens).logits, atol=1e-4, rtol=0)


def test_a_checkpoint_without_a_tokenizer_is_refused_by_its_own_name(place, capsys):
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(place / "bare")
    assert convert("bare", "out", cache_bytes=ORIGINAL // 2) == 2
    assert "model=bare holds no tokenizer" in capsys.readouterr().err and not (place / "out").exists()


def test_half_precision_stays_half_precision(place):
    model, _ = load_with_tokenizer(place / "gqa")
    model.to(torch.bfloat16).save_pretrained(place / "half")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (place / "half" / file).write_bytes((place / "gqa" / file).read_bytes())
    assert convert("half", "out", cache_bytes=ORIGINAL // 4) == 0  # which is half of its cache
    assert {weight.dtype for weight in load_file(place / "out/model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((place / "out/conversion.json").read_text())["steps"][-1]["numbers"] == 24


def test_what_float16_cannot_hold_is_not_written_in_it(place, capsys):
    model, _ = load_with_tokenizer(place / "gqa")
    model.to(torch.float16).save_pretrained(place / "gqa")
    assert convert(cache_bytes=ORIGINAL // 4) == 2
    assert "latent_norm=constant" in capsys.readouterr().err and not (place / "out").exists()
    assert convert(cache_bytes=ORIGINAL // 4, latent_norm="none") == 0
    weights = load_file(place / "out/model.safetensors").values()
    assert all(weight.dtype == torch.float16 and weight.isfinite().all() for weight in weights)


REFUSED = [
    ({}, "state one size"),
    ({"cache_bytes": 96, "kv_lora_rank": 4}, "state one size"),
    ({"kv_lora_rank": 4}, "state one size"),
    ({"cache_bytes": 8}, "cache_bytes=8"),
    ({"cache_bytes": ORIGINAL * 2}, "cache_bytes="),
    ({"kv_lora_rank": 4, "qk_rope_head_dim": 5}, "qk_rope_head_dim=5"),
    ({"kv_lora_rank": 1, "qk_rope_head_dim": 4}, "kv_lora_rank=1"),
    ({"cache_bytes": 192, "latent_norm": "some"}, "latent_norm=some"),
    ({"cache_bytes": 192, "ranks": "some"}, "ranks=some"),
    ({"cache_bytes": 192, "q_lora_rank": 0}, "q_lora_rank=0"),
    ({"cache_bytes": 192, "q_lora_rank": 1}, "q_lora_rank=1 must lie between 2 and 49"),
    ({"cache_bytes": 192, "q_lora_rank": 50}, "q_lora_rank=50 must lie between 2 and 49"),
    ({"cache_bytes": 192, "q_lora_rank": 49, "latent_norm": "none"}, "q_lora_rank=49 must lie between 1 and 48"),
    ({"cache_bytes": 192, "calibration_tokens": 40}, "width 48"),
    ({"cache_bytes": 192, "calibration_tokens": 10**6}, "tokens, fewer than"),
    ({"cache_bytes": 192, "held_out": "text.txt"}, "share a passage"),
    ({"cache_bytes": 192, "corpus": "nowhere"}, "corpus=nowhere"),
    ({"cache_bytes": 192, "probes": "sums"}, "probes=sums is unknown"),
    ({"cache_bytes": 192, "heal_batch": 3}, "heal_batch=3 has no effect without heal_tokens"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence_and_nothing_is_written(place, capsys, flags, said):
    assert convert(**flags) == 2
    message = capsys.readouterr().err
    assert said in message and len(message.strip().splitlines()) == 1
    assert not (place / "out").exists() and not scratch_for(place / "out").exists()


@pytest.mark.parametrize(
    ("attention", "more", "said"),
    [
        ("mla", {}, "attention=mla"),
        ("gqa", {"qk_norm": True}, "qk_norm"),
        ("gqa", {"qk_norm": "whole", "norm_placement": "post"}, "qk_norm=whole"),
        ("gqa", {"norm_placement": "post"}, "norm_placement=post"),
        ("gqa", {"no_rope_layers": [1, 0]}, "no_rope_layers=[1, 0]"),
        ("gqa", {"layer_options": [{"num_key_value_heads": 3}, {"num_key_value_heads": 6}]}, "layer_options="),
        ("gqa", {"output_gate": "head"}, "output_gate"),
        ("gqa", {"sliding_window": 16}, "sliding_window=16"),
        ("gqa", {"positions": "learned"}, "positions=learned"),
        ("gqa", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type=dynamic"),
    ],
)
def test_models_that_cannot_be_converted_are_refused_by_their_field(place, prepared, capsys, attention, more, said):
    save("other", prepared, attention, **more)
    assert convert("other", "out", cache_bytes=192) == 2
    assert said in capsys.readouterr().err and not (place / "out").exists()


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_weights_that_are_not_finite_are_refused_by_their_name(place, capsys, name, wrong):
    model, _ = load_with_tokenizer(place / "gqa")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = float(wrong)
    model.save_pretrained(place / "gqa")
    assert convert(cache_bytes=ORIGINAL // 2) == 2
    assert f"{name} holds NaN or infinity" in capsys.readouterr().err and not (place / "out").exists()


def test_what_stands_in_the_target_is_kept_unless_told(place, capsys):
    (place / "out").mkdir()
    (place / "out/note.txt").write_text("mine")
    assert convert(cache_bytes=ORIGINAL // 2) == 2
    assert "out is there already" in capsys.readouterr().err and (place / "out/note.txt").read_text() == "mine"
    assert convert(cache_bytes=ORIGINAL // 2, overwrite=True) == 0
    assert not (place / "out/note.txt").exists()


def test_texts_that_share_twenty_words_are_told_whatever_stands_around_them():
    shared = " ".join(f"word{number}" for number in range(45))
    check_apart(["a b c " * 20], [shared], "one", "other")
    with pytest.raises(UserError, match="share a passage"):
        check_apart([f"before {shared} after"], [f"something else {shared}"], "one", "other")
    assert len(list(runs_of("word " * 25))) == 6


def test_the_sample_serves_both_without_what_its_documents_share(capsys):
    to_calibrate, to_measure = read_texts("wiki-sample", None, "text")
    check_apart(to_calibrate.documents, to_measure.documents, "one", "other")
    assert len(to_measure.documents) == 107 // 4 and len(to_calibrate.documents) > 75
    left_out = 107 - 107 // 4 - len(to_calibrate.documents)
    assert left_out and f"that held-out documents have too: {left_out}." in capsys.readouterr().out


def test_healing_follows_the_conversion_beside_a_control_and_the_command_goes_on_where_it_was(
    place, capsys, monkeypatch
):
    flags = {"cache_bytes": ORIGINAL // 2, "heal_tokens": 8 * 4 * 32, "heal_batch": 4, "heal_learning_rate": 0.01}
    assert convert(**flags) == 0
    rows = json.loads((place / "out-healed/healing.json").read_text())["rows"]
    assert [row["step"] for row in rows] == ["original", "converted", "healed", "control"]
    assert [row["numbers"] for row in rows] == [48, 24, 24, 48]
    lost = {row["step"]: sum(row["nats"]) for row in rows}
    assert lost["healed"] < lost["converted"] and lost["control"] < lost["original"]
    before = (place / "out/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert convert(**flags) == 0
    said = capsys.readouterr().out
    assert "already holds this conversion" in said and said.count("already trained") == 2
    assert (place / "out/model.safetensors").stat().st_mtime_ns == before
    monkeypatch.setattr(job, "library_versions", lambda: {"torch": "99"})
    assert convert(**flags) == 2
    assert "out" in capsys.readouterr().err, "what other code made is no part of this"
    assert (place / "out/model.safetensors").stat().st_mtime_ns == before


def test_text_that_has_changed_since_the_conversion_heals_nothing(place, capsys):
    flags = {"cache_bytes": ORIGINAL // 2, "heal_tokens": 4 * 32, "heal_batch": 4}
    assert convert(cache_bytes=ORIGINAL // 2) == 0
    (place / "text.txt").write_text("".join(synthetic_articles(41)), encoding="utf-8")
    assert convert(**flags) == 2
    assert "corpus=text.txt has changed since out was converted by it" in capsys.readouterr().err
    assert not (place / "out-healed").exists()
    assert convert(**flags, overwrite=True) == 0


def test_no_step_of_healing_reads_the_constant_channel(place):
    """Of a rate times K, a million, nothing would be left."""
    assert convert(cache_bytes=ORIGINAL // 2, heal_tokens=8 * 4 * 32, heal_batch=4, heal_distillation=1) == 0
    before, after = (load_model(place / name).model.layers[0].self_attn for name in ("out", "out-healed"))
    channel = before.kv_lora_rank - 1
    assert not after.kv_b_proj.weight[:, channel].any() and not after.kv_a_proj_with_mqa.weight[channel].any()
    assert after.kv_a_proj_with_mqa.bias[channel] == before.kv_a_proj_with_mqa.bias[channel] > 1000
    assert not torch.equal(after.kv_b_proj.weight, before.kv_b_proj.weight)
    rows = json.loads((place / "out-healed/healing.json").read_text())["rows"]
    apart = {row["step"]: sum(row["divergence"]) for row in rows}
    assert apart["healed"] < apart["converted"]
