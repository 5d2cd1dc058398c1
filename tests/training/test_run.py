"""Training runs: reproducible, resumable to the bit, scheduled in tokens, and never overwritten by accident."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import command, synthetic_articles
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from mla_experiments.cli import main
from mla_experiments.manifest import write_record
from mla_experiments.modeling import load_model
from mla_experiments.run_files import read_run
from mla_experiments.training.run import Run
from mla_experiments.training.settings import mixed_precision


def weights(name="mla", root="weights"):
    return load_file(f"{root}/{name}/model.safetensors")


def metrics(name="mla", root="weights"):
    return [json.loads(line) for line in Path(f"{root}/{name}/metrics.jsonl").read_text().splitlines()]


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_leaves_weights_metrics_and_curves(train, drawn, capsys):
    assert train("mha", "mla") == 0
    for name in ("mha", "mla"):
        assert AutoModelForCausalLM.from_pretrained(f"weights/{name}").config.attention == name
        assert len(AutoTokenizer.from_pretrained(f"weights/{name}")) == 300
        assert Path(f"figures/{name}.png").stat().st_size > 5000
        recorded = metrics(name)
        losses = [entry["loss"] for entry in recorded if "loss" in entry]
        assert losses[-1] < losses[0]
        assert recorded[-1]["tokens"] == 1280 and "eval_loss" in recorded[-1]
        assert not list(Path(f"weights/{name}").glob("*.bin"))
    assert Path("figures/all.png").is_file()
    said = capsys.readouterr().out
    assert "Wrote weights/mha, weights/mla" in said and "Next: mla-experiments eval" in said


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(train):
    train(run="a")
    train(run="b")
    train(run="c", seed=1)
    assert_same_weights(weights(root="weights/a"), weights(root="weights/b"))
    first, other = weights(root="weights/a"), weights(root="weights/c")
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_micro_batches_change_the_result_by_rounding_only(train):
    train(run="whole")
    train(run="parts", per_device_train_batch_size=1)
    first, second = weights(root="weights/whole"), weights(root="weights/parts")
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=2e-4, rtol=0)


def test_a_process_trains_on_one_gpu_however_many_there_are(train, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 1 if vars(self)["_n_gpu"] == 1 else 8))
    assert train() == 0, "a batch of 4 is none for 8 GPUs"


def test_a_resumed_run_ends_with_the_bits_of_one_never_stopped(train):
    train(run="whole", save_total_limit=9)
    before = Path("weights/stopped/mla")
    shutil.copytree("weights/whole/mla", before)
    write_record(before / "run.json", read_run(before) | {"status": "running"})
    (before / "model.safetensors").unlink()
    shutil.rmtree(before / "checkpoint-10")
    (before / "checkpoint-8" / "optimizer.pt").write_bytes(b"cut short")  # so that 4 is the last whole one
    assert train(run="stopped", resume=True, save_total_limit=9) == 0
    assert_same_weights(weights(root="weights/stopped"), weights(root="weights/whole"))
    assert metrics(root="weights/stopped") == metrics(root="weights/whole")


def test_the_learning_rate_warms_up_and_falls_to_a_tenth_over_the_token_budget(train):
    train(train_tokens=40 * 128, warmup_tokens=10 * 128, learning_rate=0.01, save_steps=40, eval_steps=40)
    rates = {entry["step"]: entry["learning_rate"] for entry in metrics() if "learning_rate" in entry}
    assert len(rates) == 40
    # the rate logged at a step is the one that the step used: that of the schedule one step before
    for step, rate in rates.items():
        done = step - 1
        cosine = 0.5 * (1 + math.cos(math.pi * (done - 10) / 30))
        expected = 0.01 * (done / 10 if done < 10 else 0.1 + 0.9 * cosine)
        assert rate == pytest.approx(expected, rel=1e-6), step
    assert max(rates.values()) == pytest.approx(0.01)


def test_training_again_does_nothing(train, capsys):
    train()
    first = Path("weights/mla/model.safetensors").stat().st_mtime_ns
    assert train() == 0
    assert "already trained" in capsys.readouterr().out
    assert Path("weights/mla/model.safetensors").stat().st_mtime_ns == first


def test_another_configuration_never_overwrites(train, capsys):
    train()
    before = weights()
    assert train(learning_rate=0.5) == 2
    said = capsys.readouterr().err
    assert "weights/mla holds a run that differs in learning_rate (0.003, now 0.5)" in said
    assert "--run NAME" in said and "--overwrite" in said
    assert_same_weights(before, weights())
    assert train(learning_rate=0.5, run="other") == 0
    assert train(learning_rate=0.5, overwrite=True) == 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights().items())


@pytest.mark.parametrize("flags", [{"sequence_length": 7}, {"optim": "adamw_bnb_8bit"}])
def test_what_is_refused_leaves_no_record_and_costs_no_run_that_it_was_to_replace(train, capsys, flags):
    assert train(run="new", **flags) == 2
    assert not read_run(Path("weights/new"))
    train()
    before = weights()
    assert train(overwrite=True, **flags) == 2
    assert_same_weights(before, weights())
    assert read_run(Path("weights/mla"))["status"] == "finished"


def test_files_that_no_run_made_are_not_overwritten(train, capsys):
    Path("weights/mla").mkdir(parents=True)
    Path("weights/mla/thesis.tex").write_text("years of work")
    assert train() == 2
    assert "weights/mla holds files that no run here made" in capsys.readouterr().err


def test_an_unfinished_run_asks_for_resume(train, capsys):
    train()
    write_record(Path("weights/mla/run.json"), read_run(Path("weights/mla")) | {"status": "running"})
    assert train() == 2
    assert "go on with --resume" in capsys.readouterr().err


def test_resume_with_nothing_to_resume_is_refused(train, capsys):
    assert train(resume=True) == 2
    assert "--resume finds nothing to resume under weights" in capsys.readouterr().err
    assert not Path("weights").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"hidden_size": 18, "num_attention_heads": 4}, "num_attention_heads=4 does not divide hidden_size=18"),
        ({"attention_options": '{"mla": {"qk_rope_head_dim": 3}}'}, "qk_rope_head_dim=3"),
        (
            {"attention_options": '{"mla": {"kv_lora_rank": 4}, "mla": {"rotary": 8}}'},
            "attention_options names mla twice, and one would be lost",
        ),
        ({"attention_options": "mla.kv_lora_rank=3"}, "attention_options=mla.kv_lora_rank=3 is not understood"),
        ({"batch_size": 6}, "batch_size=6 is not the product"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"sequence_length": 20}, "sequence_length=20 does not divide the 32 tokens"),
        ({"precision": "fp8"}, "precision=fp8 is unknown"),
        ({"preset": "huge"}, "preset=huge is unknown"),
        ({"positions": "alibi"}, "positions='alibi' is unknown"),
        ({"learning_rate": "fast"}, "--learning_rate"),
        ({"data_dir": "elsewhere"}, "is not there yet; make it with: mla-experiments data tokens"),
    ],
)
def test_values_that_cannot_work_are_named(train, capsys, flags, said):
    assert train(**flags) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not Path("weights/mla/model.safetensors").exists()


def test_an_unknown_attention_lists_the_known_ones(train, capsys):
    assert train("mha", "flash") == 2
    assert "attention=flash is unknown; choose one of mha, gqa, mqa, mla" in capsys.readouterr().err
    assert not Path("weights").exists()


def test_a_compiled_run_ends_in_weights_that_are_loaded_as_any_others(train):
    assert train("mla", torch_compile_backend="eager") == train("mla", run="plain") == 0
    compiled, plain = (load_file(f"weights/{run}/model.safetensors") for run in ("mla", "plain/mla"))
    assert compiled.keys() == plain.keys()
    assert load_model("weights/mla").num_parameters() == load_model("weights/plain/mla").num_parameters()


def test_attention_options_and_positions_reach_the_model(train):
    train("mla", positions="learned", attention_options='{"mla": {"kv_lora_rank": 6}}', tie_word_embeddings=True)
    config = load_model("weights/mla").config
    assert config.attention_options["kv_lora_rank"] == 6 and config.positions == "learned"
    assert config.tie_word_embeddings


def test_automatic_precision_is_what_the_device_does_well(monkeypatch):
    assert mixed_precision("auto") == {"bf16": False, "fp16": False} or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, n=native: n)
        assert mixed_precision("auto") == {"bf16": expected == "bf16", "fp16": expected == "fp16"}


def test_a_run_is_saved_with_the_tokenizer_of_its_own_tokens_whatever_is_prepared_meanwhile(
    train, monkeypatch, tmp_path
):
    first, real = Path("data/tokenizer/tokenizer.json").read_bytes(), Run.train
    Path("other.txt").write_text("".join(synthetic_articles(60, seed=3)))

    def then_other_data(self, *args):
        real(self, *args)
        assert main(command("data", corpus="other.txt", vocab_size=290, sequence_length=32)) == 0

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", then_other_data)
        assert train("mha", "mqa") == 0
    assert Path("data/tokenizer/tokenizer.json").read_bytes() != first
    saved = [json.loads(Path(f"weights/{name}/tokenizer.json").read_text())["model"] for name in ("mha", "mqa")]
    assert saved == [json.loads(first)["model"]] * 2
    assert train("mqa") == 2, "another text makes another run"


def test_going_on_and_beginning_anew_are_not_asked_for_at_once(train, capsys):
    assert train() == 0
    before = weights()
    assert train(overwrite=True, resume=True, seed=1) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert_same_weights(weights(), before)
