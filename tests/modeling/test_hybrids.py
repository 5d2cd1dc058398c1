"""Layers of different mechanisms: against stock layers one after another, and held to all that one mechanism keeps."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY, command
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, DynamicCache, StaticCache

from mla_experiments import DecoderConfig, DecoderForCausalLM
from mla_experiments.benchmark.costs import cache_elements_per_token, cached_numbers, forward_flops, num_parameters
from mla_experiments.cli import main
from mla_experiments.errors import UserError
from mla_experiments.modeling.attention import ATTENTION, find, plugins, set_decode_mode
from mla_experiments.modeling.cache import growing
from mla_experiments.modeling.export import stock_config, stock_model
from mla_experiments.testing import CHECKS, Case, run_check

SIZE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
ALL = {"attention": list(ATTENTION), "num_hidden_layers": len(ATTENTION)}
CHUNKS = ([1] * 13, [5, 1, 4, 3], [12, 1])


def model_of(attention, **changed):
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**SIZE | {"attention": attention} | changed)).double().eval()


@pytest.fixture
def tokens():
    return torch.randint(1, 40, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", [["mha", "gqa"] * 2, ["mqa", "mla", "mla", "gqa"]], ids="+".join)
@torch.no_grad()
def test_it_computes_what_stock_layers_compute_one_after_another(attention, tokens):
    """Layers of Llamas and of a DeepSeek, each with the weights and the tables of a stock model of its kind alone."""
    model = model_of(attention)
    stock = {name: stock_model(model_of(name)) for name in set(attention)}
    hidden, places = model.model.embed_tokens(tokens), torch.arange(13)[None]
    mask = torch.full((13, 13), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    for index, name in enumerate(attention):
        inner = stock[name].model
        inner.layers[index].load_state_dict(model.model.layers[index].state_dict())
        tables = inner.rotary_emb(hidden, places)
        hidden = inner.layers[index](hidden, attention_mask=mask, position_ids=places, position_embeddings=tables)
    expected = model.lm_head(model.model.norm(hidden))
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [["mha", "keqv"], ["gta", "tpa"], ["mlra", "mfa"]], ids="+".join)
@torch.no_grad()
def test_it_computes_what_layers_of_models_of_one_mechanism_compute(names, tokens):
    """Those that no library has: each layer within a model of ours that has no other mechanism."""
    model = model_of(names * 2)
    alone = {name: model_of(name) for name in names}
    hidden, places = model.model.embed_tokens(tokens), torch.arange(13)[None]
    for index, name in enumerate(names * 2):
        inner = alone[name].model
        inner.layers[index].load_state_dict(model.model.layers[index].state_dict())
        hidden = inner.layers[index](hidden, inner.rotary_emb(places, torch.float64))
    expected = model.lm_head(model.model.norm(hidden))
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("attention", ["mha+mla", "keqv+gqa", "mla+gta"])
@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ("operations", "reference")])
def test_it_keeps_the_contract_of_one_mechanism(attention, positions, check):
    if check == "compilation" and positions != "rope":
        pytest.skip("the other kind of positions compiles alike")
    run_check(CHECKS[check], Case(attention, positions=positions))


@pytest.mark.parametrize("positions", ["rope", "learned"])
@torch.no_grad()
def test_layers_of_every_mechanism_decode_from_one_cache(positions, tokens):
    model = model_of(**ALL, positions=positions)
    whole = model(tokens).logits
    makes = (
        DynamicCache,
        lambda: DynamicCache(config=model.config),
        lambda: growing(DynamicCache()),
        lambda: StaticCache(config=model.config, max_cache_len=16),
    )
    for make, chunks in itertools.product(makes, CHUNKS):
        cache = make()
        logits = torch.cat([model(part, cache=cache).logits for part in tokens.split(chunks, dim=1)], dim=1)
        torch.testing.assert_close(logits, whole, atol=1e-10, rtol=0)


@torch.no_grad()
def test_the_cache_holds_what_the_layers_state(tokens):
    model = model_of(**ALL)
    cache = model(tokens).cache
    held = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    stated = [block.self_attn.cache_elements_per_token() for block in model.model.layers]
    assert held == [2 * 13 * 8 * numbers for numbers in stated]
    assert cache_elements_per_token(model.config) == sum(stated)
    alone = [num_parameters(DecoderConfig(**SIZE | {"attention": name})) for name in ("mha", "mla")]
    assert 2 * num_parameters(DecoderConfig(**SIZE, attention="mha+mla")) == sum(alone)


def test_operations_are_those_that_are_counted():
    config = DecoderConfig(**SIZE | ALL)
    with torch.device("meta"):
        model, tokens = DecoderForCausalLM(config), torch.ones(1, 16, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(tokens, {"full_attention": None}, torch.arange(16)[None], use_cache=False)
    assert counter.get_total_flops() == forward_flops(config, 16, 16)


WINDOWED = {"attention": "mla+keqv", "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}


@torch.no_grad()
def test_windows_and_keys_that_turn_when_read_stand_side_by_side(tokens):
    """As in Gemma 4: what turns is kept whole, in layers after one of which a window is all that is kept."""
    model = model_of(**WINDOWED)
    whole = model(tokens).logits
    for make, chunks in itertools.product(
        (
            lambda: DynamicCache(config=model.config),
            lambda: StaticCache(config=model.config, max_cache_len=16),
            DynamicCache,
        ),
        CHUNKS,
    ):
        cache = make()
        logits = torch.cat([model(part, cache=cache).logits for part in tokens.split(chunks, dim=1)], dim=1)
        torch.testing.assert_close(logits, whole, atol=1e-10, rtol=0)
    cache = DynamicCache(config=model.config)
    for place in range(13):
        model(tokens[:, place : place + 1], cache=cache)
        held = sum(part.numel() for layer in cache.layers for part in (layer.keys, layer.values))
        assert held == 2 * cached_numbers(model.config, place + 1)


@pytest.mark.parametrize("given", [ALL, WINDOWED], ids=["all", "windowed"])
def test_unequal_prompts_and_beams_write_what_each_does_alone(given, tokens):
    model = model_of(**given)
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[0, :6], mask[0, :6] = 0, 0
    for beams, way in ((1, {}), (1, {"cache_implementation": "static"}), (1, {"use_cache": False}), (2, {})):
        settings = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "num_beams": beams, **way}
        together = model.generate(padded, attention_mask=mask, **settings)[:, 13:]
        alone = model.generate(tokens[:1, 6:], attention_mask=torch.ones(1, 7).long(), **settings)[0, 7:]
        assert together[0].tolist() == alone.tolist()


def test_what_is_saved_is_loaded_with_other_heads_too(tmp_path, tokens):
    model = model_of("mha+keqv+mla+keqv", attention_options={"mla": {"kv_lora_rank": 8}})
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["attention"] == "mha+keqv+mla+keqv" and written["attention_options"]["mla"]["kv_lora_rank"] == 8
    loaded = DecoderForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=1e-12, rtol=0)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, dtype=torch.float64)
    hidden = model.model(tokens).last_hidden_state[:, -1]
    torch.testing.assert_close(classifier(tokens).logits, classifier.score(hidden), atol=1e-12, rtol=0)


def test_what_is_common_to_mechanisms_is_for_all_layers(tokens):
    model = model_of("mha+mfa", output_gate="head", qk_norm=True, attention_bias=True)
    assert all(block.self_attn.gate_proj and block.self_attn.k_norm for block in model.model.layers)
    cache, whole = DynamicCache(), model(tokens).logits
    steps = [model(part, cache=cache).logits for part in tokens.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-10, rtol=0)


def test_modes_are_those_of_the_layers_that_know_them():
    model = model_of("mha+mla")
    set_decode_mode(model, "expand")
    assert [block.self_attn.decode_mode for block in model.model.layers] == ["auto", "expand"] * 2


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (["mha", "mla", "mha", "mla"], "mha+mla"),
        ("mla+mha+mla+mha", "mla+mha"),
        (["mha", "mla", "mla", "mha"], "mha+mla+mla+mha"),
        (["mla"] * 4, "mla"),
        ("mla+mla", "mla"),
    ],
)
def test_the_shortest_pattern_is_what_it_is_called(asked, kept):
    config = DecoderConfig(**SIZE, attention=asked, attention_options={"mla": {"kv_lora_rank": 8}})
    assert config.attention == kept == find(asked)
    options = {"kv_lora_rank": 8} if kept == "mla" else {"mla": {"kv_lora_rank": 8}}
    again = DecoderConfig(**SIZE, attention=kept, attention_options=options)
    assert again.to_dict() == config.to_dict() == DecoderConfig.from_dict(config.to_dict()).to_dict()


def test_names_are_those_of_the_pattern_from_the_first_layer_on():
    config = DecoderConfig(**SIZE | {"num_hidden_layers": 6}, attention="mla+mla+mha")
    assert [config.mechanism(layer).__name__ for layer in range(6)] == ["MLA", "MLA", "MHA"] * 2
    assert config.options_of(5) == config.attention_options["mha"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attention": ["mha", "mla"]}, "attention names 2 layers, but num_hidden_layers=4; name each"),
        ({"attention": "mha+mla+mla"}, r"is a pattern of 3 layers, which does not repeat to num_hidden_layers=4"),
        ({"attention": []}, r"attention=\[\] is no name of a mechanism"),
        ({"attention": [["mha"]] * 4}, "is no name of a mechanism"),
        ({"attention": "mha+mlaa"}, "attention=mlaa is unknown; did you mean mla"),
        ({"attention": "mha+"}, "attention= is unknown"),
        ({"attention_options": {"gqa": {}}}, "attention_options has gqa, which is no mechanism of attention=mha.mla"),
        ({"attention_options": {"kv_lora_rank": 8}}, "has kv_lora_rank, which is no .* by mechanism: mha, mla"),
        ({"attention_options": {"mla": {"rank": 8}}}, "attention_options has rank, unknown to attention='mla'"),
        ({"attention_options": {"mla": 8}}, "attention_options=8 must be a dictionary"),
        ({"attention_options": {"mla": {"kv_lora_rank": "8"}}}, "kv_lora_rank='8' must be an integer"),
        ({"attention_options": [8]}, r"attention_options=\[8\] must be a dictionary"),
        ({"attention": "mha+keqv", "qk_norm": True}, "qk_norm=True is not followed by KEqV"),
        (
            {"attention": "mha+keqv", "sliding_window": 4},
            "sliding_window=4 is not followed by attention=keqv; .*layer 1",
        ),
        ({"attention_source": {"mla": {"file": "x.py"}}}, "does not say where a mechanism came from"),
        ({"attention_source": "x.py"}, "does not say where a mechanism came from"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(given, said):
    with pytest.raises(UserError, match=said):
        DecoderConfig(**SIZE | {"attention": "mha+mla"} | given)


def test_there_is_no_stock_model_of_it():
    with pytest.raises(UserError, match=r"attention=mha\+gqa exists in no stock model; mha, gqa"):
        stock_config(DecoderConfig(**SIZE, attention="mha+gqa"))


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(plugins, "_modules", {})
    monkeypatch.setenv(plugins.VARIABLE, "")
    known = dict(ATTENTION)
    yield
    ATTENTION.clear()
    ATTENTION.update(known)


def test_a_mechanism_from_outside_is_recorded_within_it(registry, tmp_path, monkeypatch):
    shutil.copy(REPOSITORY / "docs/examples/thin_keys/thin_keys.py", tmp_path)
    (tmp_path / "a+b").mkdir()
    shutil.copy(tmp_path / "thin_keys.py", tmp_path / "a+b")
    monkeypatch.chdir(tmp_path)
    for asked in ("mla+thin_keys.py:ThinKeys", ["mla", "thin_keys.py:ThinKeys"] * 2):
        config = DecoderConfig(
            **SIZE, attention=asked, attention_options={"thinkeys": {"key_dim": 2}} if "+" in asked else None
        )
        assert config.attention == "mla+thinkeys" and list(config.attention_source) == ["thinkeys"]
        assert config.attention_source["thinkeys"]["file"] == "thin_keys.py"
    assert find("thin_keys.py:ThinKeys+mla") == "thinkeys+mla"
    saved = config.to_dict()
    assert DecoderConfig.from_dict(saved).to_dict() == saved
    ATTENTION.pop("thinkeys")
    monkeypatch.setenv(plugins.VARIABLE, "")
    with pytest.raises(
        UserError, match=r"attention=thinkeys is not here; .* add --attention path/to/thin_keys.py:ThinK"
    ):
        DecoderConfig.from_dict(saved)
    monkeypatch.setattr(plugins, "_modules", {})
    assert find("a+b/thin_keys.py:ThinKeys") == "thinkeys"


def test_the_command_line_trains_evaluates_and_plans_it(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = json.dumps({"mla": {"kv_lora_rank": 4}})
    flags = {**TINY, "num_hidden_layers": 2, "max_steps": 2, "attention_options": options}
    assert main([*command("train", **flags), "--attention", "mha", "mha+mla+mla"]) == 2
    assert "num_hidden_layers=2" in capsys.readouterr().err
    assert main([*command("train", **flags), "--attention", "mha", "mla+mha"]) == 0
    run = json.loads(Path("weights/mla+mha/run.json").read_text())
    assert run["attention"] == run["identity"]["model"]["attention"] == "mla+mha"
    assert run["identity"]["model"]["attention_options"]["mla"]["kv_lora_rank"] == 4
    assert main([*command("train", **flags), "--attention", "mla+mha", "--resume"]) == 0
    assert "weights/mla+mha is already trained" in capsys.readouterr().out
    assert main(["eval"]) == 0
    assert main(["generate", "mla+mha", "--prompt", "the river", "--max-new-tokens", "4"]) == 0
    assert main(["compare", "weights/mha", "weights/mla+mha"]) == 0
    assert "| mla+mha" in capsys.readouterr().out
    assert main(["plan", "weights/mla+mha"]) == 0
    said = capsys.readouterr().out
    assert "mla: " in said and "; mha: head_dim 8" in said and "numbers a token and layer on average" in said
    card = Path("weights/mla+mha/README.md").read_text()
    assert "layers of multi-head latent attention and of multi-head attention" in card
    assert card.count("Σ_s softmax_s") == 2 and "mla: " in card and "- mla+mha\n" in card
    assert main(["export", "weights/mla+mha", "out"]) == 2
    assert "attention=mla+mha exists in no stock model" in capsys.readouterr().err
