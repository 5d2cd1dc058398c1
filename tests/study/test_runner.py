"""A study runs what is missing, shares runs, survives failures and interruptions, and reports what it found."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import synthetic_articles

from mla_experiments.cli import main
from mla_experiments.errors import Stopped
from mla_experiments.evaluation.scores import read_scores
from mla_experiments.training.run import Run

TINY = {
    "vocab_size": 300, "preset": "demo", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
    "sequence_length": 32, "batch_size": 4, "per_device_train_batch_size": 4, "train_tokens": 5 * 128,
    "warmup_tokens": 128, "save_steps": 2, "attention": ["mha", "mla"], "match": "parameters",
}  # fmt: skip


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Write a study and return a function that states it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(synthetic_articles(40)))

    def write(name, **more):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**TINY, "corpus": str(tmp_path / "text.txt"), **more}))
        return str(path)

    return write


def trained(monkeypatch):
    """Count the trainings from now on."""
    begun, train = [], Run.train
    monkeypatch.setattr(Run, "train", lambda run, *rest: (begun.append(run.folder.name), train(run, *rest)))
    return begun


def content(tmp_path, name):
    return json.loads((tmp_path / "studies" / name / "study.json").read_text())


def test_a_study_tries_rates_then_seeds_does_only_what_is_missing_and_shares_runs(state, tmp_path, monkeypatch, capsys):
    begun = trained(monkeypatch)
    path = state("first", learning_rate=[1e-3, 1e-2], seeds=[0, 1])
    assert main(["study", path]) == 0
    assert len(begun) == len(set(begun)) == 2 * (2 + 1)
    said = capsys.readouterr()
    assert "[6/6] mla, learning rate" in said.out and "other versions" not in said.out
    assert "Writing model shards" not in said.err
    first = content(tmp_path, "first")
    assert first["complete"] and len(first["runs"]) == 6
    for name in ("mha", "mla"):
        losses = {
            run["learning_rate"]: read_scores(tmp_path / "studies" / run["folder"])["validation"].nats.sum()
            for run in first["runs"]
            if run["variant"] == name and run["seed"] == 0
        }
        (other,) = [run for run in first["runs"] if run["variant"] == name and run["seed"] == 1]
        assert other["learning_rate"] == min(losses, key=losses.get)
    parameters = [variant["parameters"] for variant in first["variants"]]
    assert max(parameters) / min(parameters) < 1.005

    assert main(["study", path]) == 0
    assert len(begun) == 6, "the second time there is nothing to do"
    assert main(["study", state("second", learning_rate=[1e-3, 1e-2], seeds=[0, 1, 2])]) == 0
    assert len(begun) == 6 + 2, "another study does only what no study has done"
    assert main(["report", "studies/first"]) == 0
    assert "[8/8]" in capsys.readouterr().out


def test_a_failed_run_is_reported_and_the_others_go_on(state, tmp_path, monkeypatch, capsys):
    train = Run.train

    def broken(run, *rest):
        if run.attention == "mha":
            raise RuntimeError("no room\nat all")
        return train(run, *rest)

    monkeypatch.setattr(Run, "train", broken)
    assert main(["study", state("broken")]) == 1
    assert "mha, learning rate 0.003, seed 0: no room" in capsys.readouterr().err
    assert [run["done"] for run in content(tmp_path, "broken")["runs"]] == [False, True]
    monkeypatch.setattr(Run, "train", train)
    assert main(["study", state("broken")]) == 0
    assert content(tmp_path, "broken")["complete"]


def test_a_stopped_study_goes_on_with_the_same_command(state, tmp_path, monkeypatch, capsys):
    train = Run.train

    def stopping(run, *rest):
        if run.attention == "mla":
            raise Stopped("Stopped at step 2 of 5; x is saved. Go on with --resume.")
        return train(run, *rest)

    monkeypatch.setattr(Run, "train", stopping)
    assert main(["study", state("stopped")]) == 130
    assert "The same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(Run, "train", train)
    assert main(["study", state("stopped")]) == 0
    assert content(tmp_path, "stopped")["complete"]


def test_the_same_seed_gives_the_same_weights_in_every_study(state, tmp_path):
    from safetensors.torch import load_file

    assert main(["study", state("one"), "--studies_dir", "a"]) == 0
    assert main(["study", state("two"), "--studies_dir", "b"]) == 0
    for path in filter(Path.is_dir, (tmp_path / "a" / "runs").iterdir()):
        one, two = (load_file(tmp_path / root / "runs" / path.name / "model.safetensors") for root in "ab")
        assert all(torch.equal(one[name], two[name]) for name in one)
