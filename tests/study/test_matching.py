"""What is held equal is equal: totals counted from real models, caches from real tensors, FLOPs by torch's counter."""

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mla_experiments.benchmark.costs import forward_flops, num_parameters
from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.study import read_study
from mla_experiments.study.matching import config_of, match, same_models


def study(tmp_path, **content):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"preset": "demo", "hidden_size": 64, "num_hidden_layers": 2, **content}))
    return read_study(path)


def config(stated, matched):
    return config_of(stated, matched.variant, matched.options, 300, matched.intermediate_size)


def counted_flops(made, length):
    """What torch's counter counts in a forward pass without memory; a ready mask, since no value can be looked at."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool)
        DecoderForCausalLM(made)(torch.zeros(1, length, dtype=torch.long), attention_mask=mask, use_cache=False)
    return counter.get_total_flops()


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_parameters_agree(tmp_path, positions):
    stated = study(tmp_path, match="parameters", positions=positions, attention=["mha", "gqa", "mqa", "mla", "mla+mqa"])
    totals = [sum(p.numel() for p in DecoderForCausalLM(config(stated, m)).parameters()) for m in match(stated, 300)]
    assert max(totals) / min(totals) < 1.005


def test_training_flops_agree(tmp_path):
    stated = study(tmp_path, match="flops", attention=["mha", "mla", "mla+mha"])
    counted = []
    for matched in match(stated, 300):
        counted.append(counted_flops(config(stated, matched), 256))
    assert max(counted) / min(counted) < 1.005


def test_cache_is_as_near_as_groups_and_rank_allow(tmp_path):
    stated = study(tmp_path, match="cache", cache_bytes_per_token=520, attention=["gqa", "mla"], num_attention_heads=8)
    gqa, mla = match(stated, 300)
    # 2 layers, heads of 8: a group takes 2 · 8 numbers a layer; MLA keeps its rank and 4 rotary numbers
    assert gqa.options == {"num_key_value_heads": 4} and gqa.cache_bytes_per_token == 512
    assert mla.options == {"kv_lora_rank": 61} and mla.cache_bytes_per_token == 520
    assert abs(mla.parameters / gqa.parameters - 1) < 0.005
    assert gqa.cache_residual == pytest.approx(512 / 520 - 1) and mla.cache_residual == 0


def test_each_of_several_budgets_is_matched_on_its_own(tmp_path):
    stated = study(tmp_path, match="cache", cache_bytes_per_token=[256, 512], attention=["mha", "gqa", "mla"],
                   num_attention_heads=8)  # fmt: skip
    solved = {matched.variant.name: matched for matched in match(stated, 300)}
    kept = {name.replace("cache_bytes_per_token=", ""): one.cache_bytes_per_token for name, one in solved.items()}
    assert kept == {"mha 256": 1024, "mha 512": 1024, "gqa 256": 256, "gqa 512": 512, "mla 256": 256, "mla 512": 512}
    assert [stated.budget_of(one.variant) for one in solved.values()] == [256, 512] * 3
    assert solved["mha cache_bytes_per_token=512"].cache_residual == 1
    assert max(one.parameters for one in solved.values()) / min(one.parameters for one in solved.values()) < 1.005
    assert (
        "cache_bytes_per_token" not in stated.arguments(stated.variants[0])[0] | stated.arguments(stated.variants[0])[1]
    )
    with pytest.raises(UserError, match="cache_bytes_per_token=10 is met by no variant"):
        narrow = study(tmp_path, match="cache", cache_bytes_per_token=[512, 10], attention=["gqa"])
        match(narrow, 300)


def test_windows_differ_by_layer_and_bound_the_cache_of_a_sequence(tmp_path):
    """A field that is a list is one value; a list of lists sweeps it."""
    kinds = ["sliding_attention", "full_attention"]
    stated = study(tmp_path, match="none", attention="mha", sliding_window=65, layer_types=kinds, num_hidden_layers=2)
    (matched,) = match(stated, 300)
    assert config(stated, matched).layer_types == kinds
    of_layer = matched.cache_bytes_per_token // 2
    assert matched.cache_bytes[8192] == of_layer * (8192 + 64)
    swept = study(tmp_path, match="none", attention="mha", sliding_window=65, layer_types=[kinds, kinds[::-1]])
    assert [variant.changed["layer_types"] for variant in swept.variants] == [kinds, kinds[::-1]]
    with pytest.raises(UserError, match="layer_types names 3 layers"):
        three = study(tmp_path, match="none", attention="mha", sliding_window=65, layer_types=[*kinds, kinds[0]])
        match(three, 300)


def test_each_size_of_a_sweep_is_matched_on_its_own(tmp_path):
    stated = study(tmp_path, match="parameters", attention=["mha", "mqa", "mla"], hidden_size=[32, 64])
    totals = {32: [], 64: []}
    for matched in match(stated, 300):
        totals[matched.variant.changed["hidden_size"]].append(
            sum(p.numel() for p in DecoderForCausalLM(config(stated, matched)).parameters())
        )
    assert all(max(sizes) / min(sizes) < 1.005 for sizes in totals.values())
    assert min(totals[64]) > 1.5 * max(totals[32])


def test_a_swept_width_of_the_mlp_is_the_mark_of_its_own_size(tmp_path):
    stated = study(tmp_path, match="parameters", attention=["mha", "mla"], intermediate_size=[64, 256])
    widths = [matched.intermediate_size for matched in match(stated, 300)]
    assert widths[:2] == [64, 256] and widths[3] - widths[2] == 256 - 64


def test_a_match_that_cannot_be_met_says_how_near_it_came(tmp_path):
    options = {"attention.kv_lora_rank": 4000, "intermediate_size": 8}
    with pytest.raises(
        UserError, match=r"match=parameters cannot be met by mla kv_lora_rank=4000: .* \d+\.\d % more than"
    ):
        match(study(tmp_path, match="parameters", attention=["mha", "mla"], **options), 300)


@settings(max_examples=25)
@given(
    attention=st.sampled_from(["mha", "gqa", "mqa", "mla"]), layers=st.integers(1, 3), length=st.integers(2, 40),
    tied=st.booleans(), vocabulary=st.integers(2, 99),
)  # fmt: skip
def test_costs_are_those_of_the_real_model(attention, layers, length, tied, vocabulary):
    made = DecoderConfig(
        vocab_size=vocabulary, hidden_size=32, num_attention_heads=4, num_hidden_layers=layers, attention=attention,
        tie_word_embeddings=tied, max_position_embeddings=64,
    )  # fmt: skip
    model = DecoderForCausalLM(made)
    assert num_parameters(made) == sum(parameter.numel() for parameter in model.parameters())
    assert forward_flops(made, length, length) == counted_flops(made, length)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"atention": ["mha"]}, "unknown field atention; did you mean attention?"),
        ({"attention": ["mla", "mlq"]}, "attention=mlq is unknown; did you mean mqa"),
        ({"attention.kv_lora_ranks": 4}, "did you mean attention.kv_lora_rank?"),
        ({"match": "size"}, "match=size is unknown"),
        ({"match": "paramters"}, "did you mean parameters?"),
        ({"match": "cache"}, "belong together"),
        ({"match": "cache", "cache_bytes_per_token": -3}, "cache_bytes_per_token=-3 must be at least 1"),
        ({"match": "cache", "cache_bytes_per_token": "many"}, "cache_bytes_per_token=many must be a whole number"),
        (
            {"match": "cache", "cache_bytes_per_token": 9, "attention.kv_lora_rank": [8]},
            "is what match=cache solves for",
        ),
        ({"attention": ["mha", "mqa"], "attention.kv_lora_rank": 8}, "is an option of none of mha, mqa"),
        ({"attention.kv_lora_rank": "many"}, "must be an integer"),
        ({"attention": []}, r"attention=\[\] leaves nothing to run"),
        ({"attention": ["mha", "mha"]}, "attention names mha twice"),
        ({"attention": ["mla+mha", "mla+mha+mla+mha"]}, r"attention names mla.mha twice"),
        ({"attention": "mha+mlq"}, "attention=mlq is unknown"),
        ({"attention": "mha+mqa", "attention.kv_lora_rank": 8}, r"is an option of none of mha\+mqa"),
        ({"attention": "mha+mla", "attention.kv_lora_rank": "many"}, "must be an integer"),
        (
            {"match": "cache", "cache_bytes_per_token": 9, "attention": ["mla", "mha+mla"]},
            r"match=cache solves for an option of one mechanism, which mha\+mla is not",
        ),
        ({"attention": ["mha", {"mla": {"kv_lora_rank": "many"}}]}, "attention.kv_lora_rank='many' must be an integer"),
        ({"attention": ["mla", {"mha": {"kv_lora_rank": 8}}]}, "attention.kv_lora_rank is an option of none of mha"),
        ({"attention": [{"mla": 8}]}, "must be a name, or one with its options"),
        ({"attention": [{"mla": {"kv_lora_rank": 8}}, {"mla": {"kv_lora_rank": 8}}]}, "attention names mla: .* twice"),
        (
            {"attention": ["mla", {"mla": {"kv_lora_rank": 8}}], "attention.kv_lora_rank": [8, 16]},
            "attention, with its options, names mla kv_lora_rank=8 twice; once is enough",
        ),
        ({"seeds": []}, "leaves nothing to run"),
        ({"seeds": [0, 0]}, "seeds names 0 twice"),
        ({"seeds": ["a"]}, "seeds=a must be a whole number"),
        ({"seeds": 1.5}, "seeds=1.5 must be a whole number"),
        ({"hidden_size": []}, "leaves nothing to run"),
        ({"hidden_size": "big"}, "hidden_size=big cannot be: invalid int value"),
        ({"train_tokens": "2e3"}, "train_tokens=2e3 cannot be: invalid int value"),
        ({"corpus": ["a", "b"]}, "cannot be swept: runs on other text"),
        ({"vocab_size": [300, 400]}, "cannot be swept"),
        ({"vocab_size": "some"}, "vocab_size=some must be a whole number"),
        ({"seed": 3}, "the field seed, which a study sets itself; give seeds"),
        ({"attention_options": "{}"}, "give attention.OPTION"),
        ({"learning_rate": {"mha": 1e-3}, "attention": ["mha", "mla"]}, "says nothing of mla"),
        ({"learning_rate": "fast"}, "learning_rate=fast cannot be: invalid float value"),
        ({"learning_rate": [1e-3, -1]}, "learning_rate=-1 must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf must be a finite number"),
        ({"learning_rate": {"mha": 1e-3, "gqa": 1e-3}, "attention": "mha"}, "names gqa, which is none of mha"),
        ({"corpus": 3}, "corpus=3 must be text"),
        ({"shuffle_seed": -1}, "shuffle_seed=-1 must be at least 0"),
        ({"learning_rate": []}, "leaves nothing to run"),
        ({"learning_rate": {"mha": [1e-3, 1e-3]}, "attention": "mha"}, "names 0.001 twice"),
        ({"preset": "huge"}, "preset=huge is unknown"),
    ],
)
def test_a_study_that_cannot_be_is_one_sentence(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        study(tmp_path, **content)


def test_values_are_read_as_the_command_line_reads_them(tmp_path):
    stated = study(tmp_path, weight_decay=["1e-1", 0], sequence_length=[64, 96], tie_word_embeddings=True)
    assert {v.changed["weight_decay"] for v in stated.variants} == {0.1, 0.0}
    assert stated.settings["tie_word_embeddings"] is True
    assert stated.row_length == 192, "rows that sequences of 64 and of 96 tokens both divide"


def test_lists_are_swept_and_options_reach_those_that_know_them(tmp_path):
    stated = study(
        tmp_path, attention=["mha", "gqa", "mla"], hidden_size=[32, 64],
        **{"attention.kv_lora_rank": [8, 16], "attention.num_key_value_heads": [1, 2]},
    )  # fmt: skip
    names = [variant.name for variant in stated.variants]
    assert len(names) == len(set(names)) == 2 + 4 + 4
    assert "mla kv_lora_rank=8 hidden_size=64" in names and "mha hidden_size=32" in names


def test_a_mechanism_can_have_options_of_its_own_which_go_before_those_of_all(tmp_path):
    steps = ["gqa", {"mla": {"latent_norm": False}}, {"mla": {"kv_lora_rank": 4}}, "mla+gqa"]
    stated = study(tmp_path, attention=steps, **{"attention.kv_lora_rank": [8, 16]})
    assert [variant.name for variant in stated.variants] == [
        "gqa", "mla kv_lora_rank=8 latent_norm=False", "mla kv_lora_rank=16 latent_norm=False", "mla kv_lora_rank=4",
        "mla+gqa kv_lora_rank=8", "mla+gqa kv_lora_rank=16",
    ]  # fmt: skip


def test_variants_that_are_one_model_are_found(tmp_path):
    stated = study(
        tmp_path, attention=["mha", "gqa", "mqa", "mla"], match="parameters", num_attention_heads=4,
        **{"attention.num_key_value_heads": [1, 2, 4], "attention.full_variance": [True, False]},
    )  # fmt: skip
    assert same_models(stated, match(stated, 300), 300) == {
        "gqa num_key_value_heads=4": "mha", "mqa": "gqa num_key_value_heads=1",
    }  # fmt: skip
    twice = study(tmp_path, attention=["gqa", "mqa"], learning_rate={"gqa": 1e-3, "mqa": 2e-3},
                  **{"attention.num_key_value_heads": 1})  # fmt: skip
    assert not same_models(twice, match(twice, 300), 300), "trained otherwise"


def test_a_budget_that_nothing_meets_is_refused(tmp_path):
    stated = study(tmp_path, match="cache", cache_bytes_per_token=10, attention=["mha", "mla"])
    with pytest.raises(UserError, match="cache_bytes_per_token=10 is met by no variant to within 5 %; the nearest is"):
        match(stated, 300)


def test_options_reach_those_layers_of_a_hybrid_that_know_them(tmp_path):
    given = {"attention.kv_lora_rank": [8, 16], "attention.num_key_value_heads": 2}
    stated = study(tmp_path, attention=["mha+mla", "gqa+mla"], hidden_size=64, num_attention_heads=4, **given)
    names = [variant.name for variant in stated.variants]
    assert names[1:3] == ["mha+mla kv_lora_rank=16", "gqa+mla kv_lora_rank=8 num_key_value_heads=2"]
    made = config(stated, match(stated, 300)[2])
    assert made.options_of(0)["num_key_value_heads"] == 2 and made.options_of(1)["kv_lora_rank"] == 8
