"""The planner against published figures, torch's counter, and the models that it speaks of."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config

from mla_experiments.benchmark.architectures import ARCHITECTURES, Architecture
from mla_experiments.benchmark.costs import cache_elements_per_token, training_flops_per_token
from mla_experiments.benchmark.hardware import HARDWARE, Hardware, this_machine
from mla_experiments.benchmark.parts import Parts, measure_parts
from mla_experiments.benchmark.plan import architecture_of, changed, facts, plan
from mla_experiments.cli import main
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import set_decode_mode
from mla_experiments.study import read_study, study_plan


@pytest.mark.parametrize(
    ("name", "total", "active", "numbers_per_layer"),
    [  # model cards and papers: parameters in G, numbers cached per token and layer
        ("llama-3-8b", 8.03, None, 2048), ("llama-3-70b", 70.6, None, 2048), ("mistral-7b", 7.24, None, 2048),
        ("llama-3.1-8b", 8.03, None, 2048), ("qwen2.5-7b", 7.62, None, 1024), ("qwen3-8b", 8.19, None, 2048),
        ("deepseek-v2-lite", 15.7, None, 576), ("deepseek-v2", 236, 21, 576),
        ("deepseek-v3", 671, 37, 576), ("kimi-k2", 1030, 32, 576),
    ],
)  # fmt: skip
def test_published_sizes_come_out(name, total, active, numbers_per_layer):
    architecture = ARCHITECTURES[name]
    assert architecture.parameters / 1e9 == pytest.approx(total, rel=0.005)
    if active:
        assert architecture.active_parameters / 1e9 == pytest.approx(active, rel=0.03)
    config = architecture.config
    assert cache_elements_per_token(config) == numbers_per_layer * config.num_hidden_layers


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "mla", "tpa", "mfa"])
@pytest.mark.parametrize("tied", [True, False])
def test_decoding_flops_are_those_that_are_done(attention, tied):
    config = DecoderConfig(
        vocab_size=50, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, attention=attention,
        max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model, mask = DecoderForCausalLM(config), torch.ones(1, 1, 1, 11, dtype=torch.bool)
        set_decode_mode(model, "absorb" if attention == "mla" else "auto")
        cache = model(
            torch.zeros(1, 10, dtype=torch.long),
            attention_mask=torch.ones(1, 1, 10, 10, dtype=torch.bool),
            use_cache=True,
        ).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.long), attention_mask=mask, past_key_values=cache)
    padding = 2 * 2 * 4 * 11 * config.attention_options["qk_rope_head_dim"] if attention == "mla" else 0
    # the fused attention's values are as wide as its keys
    assert counter.get_total_flops() == Architecture(config).decoding_flops(11) + padding


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "mla", "tpa", "mfa"])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_training_flops_are_those_of_a_forward_and_a_backward_pass(attention, positions):
    config = DecoderConfig(
        vocab_size=50, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, attention=attention,
        max_position_embeddings=16, positions=positions,
    )  # fmt: skip
    with torch.device("meta"):
        model, tokens = DecoderForCausalLM(config), torch.zeros(3, 16, dtype=torch.long)
        mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
        with FlopCounterMode(display=False) as counter:
            model(tokens, attention_mask=mask, use_cache=False).logits.sum().backward()
    assert counter.get_total_flops() == 3 * 16 * training_flops_per_token(config, 16)


def test_the_bound_is_the_slower_of_memory_and_arithmetic():
    architecture = ARCHITECTURES["reference"]
    slow_memory, slow_products = Hardware(16, 1, 1000, 4), Hardware(16, 1000, 0.001, 4)
    (first,), (second,) = (plan(architecture, hardware, [1024], [1]) for hardware in (slow_memory, slow_products))
    table = 10_000 * 512  # of which a step reads one row
    moved = 4 * (architecture.parameters - table + 1024 * cache_elements_per_token(architecture.config))
    assert first["bound by"] == "memory" and first["ms/step at best"] == pytest.approx(moved / 1e9 * 1e3)
    assert second["bound by"] == "arithmetic"
    assert second["ms/step at best"] == pytest.approx(architecture.decoding_flops(1024) / 1e9 * 1e3)


def test_what_is_given_stands_in_place_of_the_hardwares_own(capsys):
    given = ["--memory-gib", "40", "--gb-per-second", "1000", "--tflop-per-second", "100"]
    assert main(["plan", "mistral-7b", *given, "--contexts", "8192", "--batch-sizes", "1"]) == 0
    said = capsys.readouterr().out
    fits = (40 * 2**30 - 2 * 7_241_732_096) // (131_072 * 8192)
    assert f" {fits} |" in said and "in 40 GiB" in said and "fewer than 100 FLOPs a byte" in said


def test_a_published_config_of_experts_is_read_as_the_shape_of_that_name(tmp_path):
    DeepseekV3Config(quantization_config={"quant_method": "fp8"}, max_position_embeddings=163_840).save_pretrained(
        tmp_path
    )
    read, known = architecture_of(str(tmp_path / "config.json")), ARCHITECTURES["deepseek-v3"]
    assert (read.parameters, read.active_parameters) == (known.parameters, known.active_parameters)
    assert read.experts == known.experts


def test_a_study_may_train_tokens_by_variant(tmp_path):
    path = tmp_path / "swept.yaml"
    path.write_text("preset: demo\nattention: mha\ntrain_tokens: [1000, 4000]\n")
    few, many, _ = study_plan(read_study(path), HARDWARE["a100"], 1)
    assert (few["tokens"], many["tokens"]) == ("1,000", "4,000")
    assert many["hours at best"] == pytest.approx(4 * few["hours at best"])


def test_the_machine_at_hand_is_measured():
    hardware = this_machine()
    assert hardware.memory_gib > 0.5 and hardware.gb_per_second > 0.5 and hardware.tflop_per_second > 1e-3
    assert hardware.device == ("cuda" if torch.cuda.is_available() else "cpu")
    (sentence,) = (line for line in facts(ARCHITECTURES["reference"], hardware) if line.startswith("the roofline"))
    assert f"{hardware.gb_per_second:,.4g} GB/s" in sentence


def test_what_if_keeps_the_rest():
    other = changed(ARCHITECTURES["deepseek-v2"], None, {"kv_lora_rank": 256})
    assert cache_elements_per_token(other.config) == 60 * (256 + 64)
    llama = changed(ARCHITECTURES["llama-3-8b"], "mla", {})
    assert llama.config.attention == "mla" and llama.config.num_hidden_layers == 32


def test_layers_may_differ():
    """Costs are the means of those of the mechanisms, options go to the layers that know them, others stay."""
    mla, mqa, both = (changed(ARCHITECTURES["deepseek-v2"], name, {}) for name in (None, "mqa", "mqa+mla"))
    for what in ("parameters", "active_parameters"):
        assert 2 * getattr(both, what) == getattr(mla, what) + getattr(mqa, what)
    for context in (1, 5000):
        assert 2 * both.cached_numbers(context) == mla.cached_numbers(context) + mqa.cached_numbers(context)
        assert 2 * both.decoding_flops(context) == mla.decoding_flops(context) + mqa.decoding_flops(context)
    assert 2 * both.training_flops() == mla.training_flops() + mqa.training_flops()
    smaller = changed(both, None, {"kv_lora_rank": 256})
    assert smaller.config.attention_options["mqa"] == both.config.attention_options["mqa"]
    assert smaller.config.attention_options["mla"] == both.config.attention_options["mla"] | {"kv_lora_rank": 256}
    assert smaller.described().startswith("mqa: head_dim 40, num_key_value_heads 1; mla: q_lora_rank 1536")
    assert "numbers a token and layer on average" in smaller.cache_described(2)


def test_every_named_hardware_can_be_planned_for(capsys):
    for name in HARDWARE:
        assert main(["plan", "llama-3-8b", "--hardware", name, "--contexts", "4096", "--batch-sizes", "1"]) == 0
        assert "131,072 bytes a token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["plan", "lama"], "model=lama is unknown; did you mean llama-3-8b?"),
        (["plan", "no-such-thing"], "model=no-such-thing is unknown; choose one of llama-3-8b, "),
        (["plan", "lama-3-8b"], "model=lama-3-8b is unknown; did you mean llama-3-8b?"),
        (["plan", "reference", "--hardware", "h10"], "hardware=h10 is unknown; did you mean h100?"),
        (["plan", "reference", "--contexts", "0"], "contexts=0 must be positive"),
        (["plan", "reference", "--kv_lora_rank", "rank"], "argument --kv_lora_rank"),
        (["plan", "reference", "--attention", "mlaa"], "attention=mlaa is unknown; did you mean mla"),
        (["plan", "reference", "--attention", "mqa", "--kv-lora-rank", "3"], "attention_options has kv_lora_rank"),
        (["plan", "reference", "--attention", "mqa+mha", "--kv-lora-rank", "3"], "is an option of none of mqa, mha"),
        (["plan", "deepseek-v2-lite", "--attention", "mla+mha"], "does not repeat to num_hidden_layers=27"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(capsys, argv, said):
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_a_study_is_planned_run_by_run(tmp_path, capsys):
    path = tmp_path / "small.yaml"
    path.write_text(
        "preset: demo\nhidden_size: 32\nnum_attention_heads: 2\nnum_hidden_layers: 1\nvocab_size: 300\n"
        "sequence_length: 32\ntrain_tokens: 3600\nseeds: [0, 1, 2]\nlearning_rate: [1e-3, 1e-2]\nmatch: flops\n"
        "attention: [mha, mla]\n"
    )
    slow = Hardware(16, 1, 1e-6, 4)  # a FLOP takes a microsecond
    first, second, both = study_plan(read_study(path), slow, 0.25)
    assert first["runs"] == second["runs"] == 2 + 3 and both["runs"] == 10
    assert first["hours at best"] == pytest.approx(5 * 3600 * first["GFLOP/token"] * 1e9 * 1e-6 / 3600)
    assert second["GFLOP/token"] == pytest.approx(first["GFLOP/token"], rel=0.005)
    assert first["hours at 25 %"] == pytest.approx(4 * first["hours at best"])
    assert both["hours at best"] == pytest.approx(first["hours at best"] + second["hours at best"])
    (measured, *_) = study_plan(read_study(path), replace(slow, device="cpu"), 0.25)
    assert measured["hours expected"] > 0
    assert main(["plan", str(path)]) == 0
    assert "hours at best" in capsys.readouterr().out
    assert main(["plan", str(path), "--utilisation", "2"]) == 2
    assert "utilisation=2 is a share of the best rate" in capsys.readouterr().err
    assert main(["plan", str(path), "--kv_lora_rank", "3"]) == 2
    assert "a study states its own" in capsys.readouterr().err


def test_runs_that_variants_share_are_planned_once(tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text(
        "preset: demo\nattention: [mha, mla]\nmatch: cache\ncache_bytes_per_token: [1024, 2048]\n"
        "cache_dtype: [f32, bf16]\nseeds: [0, 1, 2]\n"
    )
    *rows, both = study_plan(read_study(path), HARDWARE["a100"], 1)
    assert [row["runs"] for row in rows if row["variant"].startswith("mha")] == [3, 0, 0, 0]
    counts = [row["runs"] for row in rows if row["variant"].startswith("mla")]
    assert counts == [3, 3, 0, 3]  # at half the bytes 16 bits keep what single precision keeps at all of them
    shared = "mla cache=bf16 cache_bytes_per_token=1024 (the same runs as mla cache=f32 cache_bytes_per_token=2048)"
    assert both["runs"] == 12 and shared in [row["variant"] for row in rows]


def test_a_step_is_the_sum_of_its_measured_parts(monkeypatch):
    monkeypatch.setattr("mla_experiments.benchmark.parts.UNCACHED", 1 << 16)
    monkeypatch.setattr("mla_experiments.benchmark.parts.CONTEXTS", (64, 512))
    assert Parts(1e-3, 2e-9, 1e-4, 1e-6).step(weights=500_000, num_layers=10, context=100) == pytest.approx(4e-3)
    for attention in ("gqa", "mla", "gqa+mla"):
        config = DecoderConfig(
            vocab_size=50, hidden_size=64, num_attention_heads=4, num_hidden_layers=2, attention=attention
        )
        parts = measure_parts(config, 2)
        assert parts.per_weight > 0 and parts.per_layer >= 0
        (row,) = plan(Architecture(config), Hardware(1, 1, 1, 4, device="cpu"), [512], [2])
        assert row["ms/step expected"] > 0
