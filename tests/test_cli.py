"""The command line teaches, reads YAML, and refuses in one sentence with exit code 2."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, synthetic_articles

from mla_experiments.benchmark import MEASUREMENTS
from mla_experiments.cli import COMMANDS, main
from mla_experiments.next_step import Step, elsewhere
from mla_experiments.study.schema import StudyFile, Tuning
from mla_experiments.yaml_files import read_yaml


def test_help_lists_the_commands_and_each_lists_its_flags(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in COMMANDS:
        assert name in said
        assert "--" in help_of(capsys, name)


def test_help_of_training_is_short_and_all_of_it_is_behind_another_flag(capsys):
    own = help_of(capsys, "train")
    assert len(own.splitlines()) < 60 and "--hidden_size" in own and "--adam_beta2" not in own
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    everything = capsys.readouterr().out
    assert "--adam_beta2" in everything and "--hidden_size" in everything


def test_help_of_studies_lists_every_field_that_a_study_reads_itself(capsys):
    said = help_of(capsys, "study")
    own = StudyFile.model_fields.keys() - {"tuning"} | {f"tuning.{name}" for name in Tuning.model_fields}
    for name in [*own, "attention.OPTION", "corpus.FIELD", "tuning.FIELD"]:
        assert f"  {name} " in said


def test_what_to_run_next_fits_how_one_came(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(Step("train_model.py --streaming", "train --streaming")) == "mla-experiments train --streaming"
    (tmp_path / "train_model.py").touch()
    assert str(Step("train_model.py", "train")) == "python train_model.py"
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    assert str(Step("train_model.py", "train")) == "cd ..; python train_model.py"


def test_what_to_run_next_finds_the_folders_that_were_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("".join(synthetic_articles(40)))
    for stage in ("download", "tokenizer --vocab_size 300", "tokens"):
        given = "--corpus own.txt" if stage == "download" else ""
        assert main(f"data {stage} {given} --data_dir here".split()) == 0
    said = capsys.readouterr().out
    for command in ("data tokenizer", "data tokens", "train"):
        assert f"Next: mla-experiments {command} --data_dir here\n" in said
    assert elsewhere(data_dir="./data", weights_dir=tmp_path / "weights") == ""
    assert elsewhere(data_dir="data", weights_dir="my weights") == " --weights_dir 'my weights'"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/hftokenizer.py").touch()
    monkeypatch.chdir(tmp_path / "data")
    assert elsewhere(data_dir=tmp_path / "data") == "", "the scripts of a clone say this themselves"
    (tmp_path / "train_model.py").touch()
    following = Step("train_model.py", "train").with_folders(data_dir="mine", weights_dir=tmp_path / "w")
    assert str(following) == f"cd ..; python train_model.py --data_dir data/mine --weights_dir {tmp_path / 'w'}"


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_every_measurement_explains_its_flags(capsys, what):
    assert "--rounds" in help_of(capsys, "bench", what) or what in ("cache", "packing", "conversion", "all")


def help_of(capsys, *argv):
    try:
        assert main([*argv, "--help"]) == 0
    except SystemExit as ended:  # argparse
        assert ended.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fly"], "command fly is unknown; choose one of choose, data, train, eval"),
        (["plan", ""], "MODEL='' is empty; give a value"),
        (["eval", "--limit", "3"], "limit=3 is of the documents of tasks, and has no effect without --tasks"),
        (["train", "--learning_rat", "1"], "--learning_rat"),
        (["data", "upload"], "data stage upload is unknown"),
        (["data", "tokens", "--sequence-length", "long"], "invalid int value: 'long'"),
        (["generate"], "--model"),
        (["train", "--attention", "mha", "--attention=mla"], "--attention stands twice, and one would be lost"),
        (["eval", "mha", "--models", "mla"], "--models stands twice, and one would be lost"),
        (["train", "--config"], "--config needs a file"),
        (["train", "--config", "absent.yaml"], "config=absent.yaml cannot be read"),
    ],
)
def test_what_cannot_be_understood_is_refused(capsys, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_a_config_gives_flags_that_the_command_line_overrides(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text("corpus: wiki-sample\nvocab_size: 270\nattention: [mha, mla]\nlearning_rate: 1e-3\n")
    assert main(["data", "tokenizer", "--config", "study.yaml"]) == 0
    assert "270 entries" in capsys.readouterr().out
    assert main(["data", "tokenizer", "--config", "study.yaml", "--vocab-size", "280"]) == 0
    assert "280 entries" in capsys.readouterr().out


def test_an_unknown_key_of_a_config_names_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text("vocab_sice: 270\n")
    assert main(["data", "--config", "study.yaml"]) == 2
    assert "unknown flag vocab_sice; did you mean vocab_size?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("vocab_size: 270\nvocab_size: 280\n", "config=study.yaml states vocab_size twice, and one would be lost"),
        ("lr_scheduler_kwargs: {min_lr_rate: 0.1, min_lr_rate: 0.5}\n", "states min_lr_rate twice"),
        ("corpus:\n", "config=study.yaml has corpus=, which has no value; give one, or leave it out"),
    ],
)
def test_a_config_that_says_a_thing_twice_or_not_at_all_is_refused(tmp_path, monkeypatch, capsys, stated, said):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(stated)
    assert main(["data", "--config", "study.yaml"]) == 2
    assert said in capsys.readouterr().err


def test_what_an_anchor_is_merged_with_may_say_it_anew(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")
    assert read_yaml(path, "config", "")[1] == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_is_understood_by_every_stage(path):
    from transformers import TrainingArguments

    from mla_experiments.cli.data import DataArguments
    from mla_experiments.cli.evaluate import EvaluationArguments
    from mla_experiments.cli.parsing import parse
    from mla_experiments.study import read_study
    from mla_experiments.training import RunArguments

    assert read_study(path).variants
    if "seeds:" in path.read_text():
        return  # a study alone: its lists are variants, which other stages do not know
    for classes in ([DataArguments], [RunArguments, TrainingArguments], [EvaluationArguments]):
        assert parse(classes, ["--config", str(path)], "test", "")


@pytest.mark.parametrize("script", ["train_model.py", "eval_model.py", "data/download_data.py"])
def test_scripts_explain_themselves(script):
    done = subprocess.run([sys.executable, REPOSITORY / script, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "usage:" in done.stdout


def test_kernels_lists_every_backend_and_why_it_cannot_run(capsys):
    assert main(["kernels"]) == 0
    backends, code = capsys.readouterr().out.split("\n\n")
    listed = dict(line.split(maxsplit=1) for line in backends.splitlines())
    assert list(listed) == ["flashmla", "flashinfer", "triton", "c", "torch"]
    assert listed["torch"] == "usable"
    assert all(said == "usable" or said.startswith("not usable: ") for said in listed.values())
    assert all(
        re.match(r"C code of [\w, ]+: (compiled on this machine|prebuilt|none)", line) for line in code.splitlines()
    )
    assert main(["kernels", "--fast"]) == 2
