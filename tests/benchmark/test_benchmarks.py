"""Benchmarks measure what they say: cache bytes against arithmetic, rates against known work, turns in order."""

import json
import math

import pytest
import torch

from mla_experiments.benchmark import (
    assisted,
    cache_size,
    conversion_memory,
    core,
    crossover,
    decode,
    generation_time,
    load,
    measure,
    parallel,
    prefill,
)
from mla_experiments.cli import main
from mla_experiments.kernels import latent
from mla_experiments.markdown import table
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, set_weight_dtype
from mla_experiments.report.figures import draw_rows

FLOAT32, LAYERS = 4, 8


@pytest.mark.parametrize(
    ("attention", "numbers"), [("mha", 2 * 512), ("gqa", 2 * 4 * 32), ("mqa", 2 * 32), ("mla", 128 + 16)]
)
def test_cache_counts_the_bytes_of_the_tensors_and_the_largest_batch(attention, numbers):
    row = cache_size.decode_in_memory(attention, context=96, budget_gib=1.0)
    assert row["bytes/token"] == row["formula"] == numbers * FLOAT32 * LAYERS
    assert row["with room to grow"] >= row["cache MiB"] == numbers * FLOAT32 * LAYERS * 96 / 2**20
    weights = row["weights MiB"] * 2**20
    held = numbers * FLOAT32 * LAYERS * 96
    assert weights + row["largest batch"] * held <= 2**30 < weights + (row["largest batch"] + 1) * held


def test_a_decoding_step_reads_the_whole_cache_and_leaves_it_as_it_was():
    given = decode.Arguments(attention=["mla"], contexts=[32], batch_sizes=[2], modes=["absorb", "full"], rounds=1)
    rows = {row["model"]: row for row in decode.measure(given)}
    assert {"mla, ours: absorb", "mla, ours: full"} < set(rows)
    assert rows["mla, ours: absorb"]["cache MiB"] == 2 * 32 * 144 * FLOAT32 * LAYERS / 2**20
    assert rows["mla, ours: full"]["cache MiB"] == 2 * 32 * 16 * (48 + 32) * FLOAT32 * LAYERS / 2**20
    for row in rows.values():
        assert 0 < row["from"] <= row["ms"] <= row["to"]
        assert math.isclose(row["tokens/s"], 2e3 / row["ms"])


@pytest.mark.parametrize(("dtype", "per_token"), [("f32", 576), ("bf16", 288), ("int8", 128 + 16 + 2 * 4)])
def test_caches_in_fewer_bits_are_counted_and_decoded_from(dtype, per_token):
    row = cache_size.decode_in_memory("mla", context=96, budget_gib=1.0, cache_dtype=dtype)
    assert row["bytes/token"] == row["formula"] == per_token * LAYERS
    given = decode.Arguments(attention=["mla"], contexts=[32], batch_sizes=[2], cache_dtypes=[dtype], rounds=1)
    rows = {row["model"]: row for row in decode.measure(given)}
    assert set(rows) == {f"mla, ours: auto, cache {dtype}", "mla, transformers"}
    assert rows[f"mla, ours: auto, cache {dtype}"]["cache MiB"] == 2 * 32 * per_token * LAYERS / 2**20


def test_weights_in_fewer_bits_are_counted_and_read():
    given = decode.Arguments(attention=["mha"], contexts=[8], batch_sizes=[1], weight_dtypes=["f32", "int8"], rounds=1)
    assert [row["model"] for row in decode.measure(given)] == [
        "mha, ours",
        "mha, ours, weights int8",
        "mha, transformers",
    ]
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    for tied in (True, False):
        model = DecoderForCausalLM(DecoderConfig(**sizes, attention="mha", tie_word_embeddings=tied))
        maps = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        rest = sum(module.weight.nbytes for module in model.modules() if isinstance(module, torch.nn.RMSNorm))
        assert decode.weights_read(model) == rest + sum(one.weight.nbytes for one in maps)
        set_weight_dtype(model, "int8")
        assert decode.weights_read(model) == rest + sum(one.out_features * (one.in_features + 4) for one in maps)


def test_llama_cpp_decodes_from_our_weights_in_every_type_beside_ours(capsys):
    pytest.importorskip("llama_cpp", reason="building it takes ten minutes; docs/speed.md")
    given = decode.Arguments(
        attention=["mla", "tpa"], contexts=[32], batch_sizes=[1, 2], peers=["llama.cpp"], cache_dtypes=["f32", "f16"],
        rounds=1,
    )  # fmt: skip
    rows = {(row["model"], row["batch"]): row for row in decode.measure(given)}
    theirs = {model: row for (model, batch), row in rows.items() if "llama.cpp" in model}
    ways = [f"weights f32, cache {cache}{how}" for cache in ("f32", "f16") for how in ("", ", flash")]
    assert set(theirs) == {f"mla, llama.cpp: {way}" for way in ways} and {row["batch"] for row in theirs.values()} == {
        1
    }
    plain = theirs["mla, llama.cpp: weights f32, cache f32"]
    assert plain["cache MiB"] == pytest.approx(32 * 144 * FLOAT32 * LAYERS / 2**20, rel=0.02)
    assert plain["ms"] > 0 and plain["% of matmul"] is None and "llama.cpp" in table(list(rows.values()))
    assert "left out of llama.cpp: tpa" in capsys.readouterr().out
    assert not any("transformers" in model for model, _ in rows)


def test_a_step_of_guesses_is_held_against_as_many_plain_ones():
    given = assisted.Arguments(attention=["mqa"], contexts=[16], guessed=[2, 3], rounds=1)
    rows = assisted.measure(given)
    assert [(row["model"], row["guessed"]) for row in rows] == [
        (f"mqa, {who}", count) for who in ("ours", "transformers") for count in (2, 3)
    ]
    row = assisted.row("mla", 16, guessed=3, ms=6.0, plain_ms=4.0)
    assert math.isclose(row["of a plain step"], 1.5) and math.isclose(row["of plain, a third right"], 2 / 1.5)
    right = row["pays from, % right"] / 100  # with so many right, guessing gives as many tokens a second as not
    assert math.isclose((1 + 3 * right) / 6.0, 1 / 4.0)


def test_a_context_beyond_the_memory_budget_is_left_out_and_said(capsys):
    given = decode.Arguments(attention=["mha"], contexts=[64], batch_sizes=[1], rounds=1, budget_gib=1e-6)
    assert decode.measure(given) == []
    assert "left out" in capsys.readouterr().out


@pytest.mark.parametrize("backend", [name for name in ("c", "torch") if latent.reasons()[name] is None])
def test_the_core_counts_the_operations_that_torch_counts(backend):
    latent.force_backend(backend)
    mla = core.layer("A")
    query, latents = core.inputs(mla, batch=3, num_new=1, context=40)
    with torch.inference_mode():
        counted = measure.flops_of(lambda: core.absorb(mla, query, latents, None))
    latent.force_backend(None)
    # the values of PyTorch's fused attention are as wide as its keys
    fused_values = 2 * 3 * 16 * 40 * mla.qk_rope_head_dim if backend == "torch" else 0
    assert counted == 3 * core.flops(mla, 1, 40) + fused_values


@pytest.mark.parametrize("shape", list(core.SHAPES))
def test_both_ways_that_the_crossover_compares_give_one_answer(shape):
    from mla_experiments.kernels import attend

    mla = core.layer(shape)
    query, latents = core.inputs(mla, batch=1, num_new=4, context=24)
    mask = torch.ones(4, 24, dtype=torch.bool).tril(20)[None, None]
    with torch.inference_mode():
        expanded = attend(query, *mla.expand(latents.unsqueeze(1)), mask, mla.scale)
        torch.testing.assert_close(core.absorb(mla, query, latents, mask), expanded, atol=1e-4, rtol=1e-4)
    row = crossover.compare(mla, shape, num_new=4, context=24, rounds=1)
    assert row["slower than the better by, %"] >= 0


def test_prefill_and_generation_measure_every_contestant():
    given = prefill.Arguments(attention=["mqa"], prompts=[17], weight_dtypes=["f32", "bf16"], rounds=1)
    rows = prefill.measure(given)
    assert [row["prompt"] for row in rows] == [17] * len(rows) and len({row["model"] for row in rows}) == len(rows) > 1
    given = generation_time.Arguments(attention=["mqa"], prompts=[8], new_tokens=[2], rounds=1)
    names = {row["model"] for row in generation_time.measure(given)}
    assert {"mqa, ours, cache", "mqa, ours, none"} <= names


def test_conversion_measures_processes_of_their_own():
    (row,) = conversion_memory.measure(
        conversion_memory.Arguments(attention=["mla"], hidden_size=64, num_hidden_layers=1)
    )
    config = DecoderConfig(vocab_size=32_000, hidden_size=64, num_hidden_layers=1)
    parameters = DecoderForCausalLM(config).num_parameters()
    assert row["parameters"] == f"{parameters:,}"
    assert parameters * FLOAT32 <= row["checkpoint MiB"] * 2**20 < parameters * FLOAT32 + 10_000
    for name in ("export", "import"):  # torch alone takes more than this checkpoint
        assert row[f"{name}, s"] > 0 and 100 < row[f"{name}, peak MiB"] < 2000


def test_contestants_take_turns_and_warm_up_untimed():
    order = []
    tasks = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = measure.interleaved(tasks, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_the_roofline_is_a_share_of_the_machine():
    shares = measure.roofline(0.5, flops=1e9, num_bytes=4e9, ceiling={"GFLOP/s": 8.0, "GB/s": 16.0})
    assert shares == {"% of matmul": 25.0, "% of bandwidth": 50.0}


def test_the_command_writes_a_table_a_json_and_a_figure(tmp_path, capsys):
    flags = ["--shapes", "A", "--contexts", "8", "--new_tokens", "1", "2", "--rounds", "1"]
    assert main(["bench", "crossover", *flags, "--output_dir", str(tmp_path)]) == 0
    assert "absorb / expand" in capsys.readouterr().out
    (path,) = tmp_path.glob("*crossover.json")
    assert [row["new tokens"] for row in json.loads(path.read_text())["rows"]] == [1, 2]
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_rows_become_one_panel_a_value(tmp_path):
    rows = [
        {"n": n, "ms": n * b, "from": n, "to": 9, "who": who, "batch": b}
        for n in (1, 2)
        for b in (1, 8)
        for who in "xy"
    ]
    assert draw_rows(rows, tmp_path / "a.png", x="n", y="ms", line="who", panel="batch", title="t").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["bench"], "bench needs to know what to measure"),
        (["bench", "luck"], "bench luck is unknown; choose one of training"),
        (["bench", "core", "--backend", "abacus"], "backend=abacus is unknown"),
        (["bench", "core", "--shapes", "C"], "shape=C is unknown"),
        (["bench", "load", "--waits", "sleepily"], "waits=sleepily is unknown"),
        (["bench", "decode", "--modes", "guess"], "decode_mode=guess is unknown"),
        (["bench", "decode", "--peers", "ollama"], "peers=ollama is unknown"),
        (["bench", "decode", "--peers", "none", "transformers"], "none stands alone"),
        (["bench", "decode", "--attention", "mhq"], "mhq"),
        (["bench", "decode", "--contexts", "0"], "contexts=0"),
        (["bench", "cache", "--contexts", "-3"], "contexts=-3"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_one_sentence(argv, said, capsys, tmp_path):
    extra = ["--output_dir", str(tmp_path)] if len(argv) > 1 else []
    assert main([*argv, *extra]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.startswith("error: ") and printed.count("\n") == 1
    latent.force_backend(None)


@pytest.mark.slow
def test_processes_share_a_batch_and_each_pays_for_its_optimiser():
    rows = parallel.measure(parallel.Arguments(sequence_length=16, batch_size=2, rounds=1))
    assert [(row["processes"], row["threads each"], row["sequences each"]) for row in rows] == [
        (1, 1, 2), (1, 2, 2), (2, 1, 1),
    ]  # fmt: skip
    for row in rows:
        assert row["from"] <= row["ms"] <= row["to"] and 0 < row["ms of optimiser"] < row["ms"]
    assert rows[0]["times one thread"] == 1


@pytest.mark.slow
def test_busy_processes_are_there_while_speeds_beside_them_are_measured_and_gone_afterwards():
    rows = load.measure(load.Arguments(threads=[1], busy=[1], niceness=[0], seconds=1, rounds=1))
    assert [(row["task"], row["threads"], row["wait"]) for row in rows] == [("training", 1, ""), ("decoding", 1, "")]
    assert all(row["tokens/s alone"] > 0 and row["% beside 1 of nice 0"] > 0 for row in rows)
    with load.busy_processes(2, 10) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.poll() is not None for process in processes)


def test_a_batch_that_does_not_divide_among_processes_is_refused(capsys):
    assert main(["bench", "parallel", "--batch-size", "3"]) == 2
    assert "batch_size=3 is no multiple of processes=2" in capsys.readouterr().err
