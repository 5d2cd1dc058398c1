"""A study over a synthetic task: difficulty swept, statistics of answers, and what the report says of recall."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mla_experiments.cli import main
from mla_experiments.errors import UserError
from mla_experiments.report.findings import read_findings
from mla_experiments.study.description import read_study

STATED = {
    "corpus": "synthetic:needle:noise=8,keys=8", "corpus.needles": [1, 2], "attention": ["mha", "mqa"],
    "preset": "demo", "sequence_length": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "match": "parameters", "loss_on": "answers", "train_tokens": 640, "warmup_tokens": 128, "batch_size": 8,
    "per_device_train_batch_size": 8, "validation_tokens": 128, "seeds": [0],
}  # fmt: skip


def stated(folder, **more):
    path = folder / "recall.yaml"
    path.write_text(yaml.safe_dump(STATED | more))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recall")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["study", str(stated(folder))]) == 0
        assert main(["report", "studies/recall"]) == 0
    return folder / "studies" / "recall"


def test_each_difficulty_has_a_corpus_of_its_own_and_pairs_are_compared_within_it(study):
    found = read_findings(study)
    assert [row.name for row in found.rows] == [
        f"{name} corpus.needles={count}" for name in ("mha", "mqa") for count in (1, 2)
    ]
    assert found.measure.name == "wrong per answer"
    assert [(c.a.split()[1], c.b.split()[1]) for c in found.comparisons] == [
        ("corpus.needles=1", "corpus.needles=1"), ("corpus.needles=2", "corpus.needles=2"),
    ]  # fmt: skip
    assert all(0 <= row.bits.mean <= 1 for row in found.rows)
    assert len(list((study.parent / "data").iterdir())) >= 2


def test_the_report_says_what_was_held_and_draws_depth_by_length(study):
    report = (study / "report.md").read_text()
    assert "needle: find what was hidden in noise (RULER" in report
    assert "Does it depend on the difficulty?" in report and "ppl/word" not in report
    assert "depth=0 length=16" in report and "bits per byte" not in report
    for name in ("accuracy-needles", "depth-0", "depth-3", "accuracy-tokens", "front-cache"):
        assert (study / "figures" / f"{name}.png").is_file()
    assert '"heatmap"' in (study / "report.html").read_text()


def test_runs_of_a_study_compare_with_each_other_and_not_across_difficulties(study, capsys):
    content = json.loads((study / "study.json").read_text())
    runs = {run["variant"]: str(study.parent / run["folder"]) for run in content["runs"] if run["seed"] == 0}
    assert main(["compare", runs["mha corpus.needles=1"], runs["mqa corpus.needles=1"]]) == 0
    assert "wrong" in capsys.readouterr().out
    assert main(["compare", runs["mha corpus.needles=1"], runs["mha corpus.needles=2"]]) == 2
    assert "different texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"corpus.needles": [1, 9]}, "needles=9 is more than the 8 keys"),
        ({"corpus.needle": 1}, "has no field needle"),
        ({"corpus": "wiki-sample"}, "corpus.needles is a field of synthetic corpora, which corpus=wiki-sample is not"),
        ({"sequence_length": 8}, "sequence_length=8 is too short"),
        ({"corpus.needles": [1, 1]}, "names 1 twice"),
        ({"vocab_size": 300}, "vocab_size has no effect"),
        ({"corpus.needles": []}, "leaves nothing to run"),
    ],
)
def test_a_difficulty_that_cannot_be_is_refused_before_anything_is_run(tmp_path, more, said):
    with pytest.raises(UserError) as error:
        read_study(stated(tmp_path, **more))
    assert said in str(error.value)


def test_a_field_that_is_the_same_for_all_is_part_of_the_corpus(tmp_path):
    study = read_study(stated(tmp_path, **{"corpus.needles": 3}))
    assert study.data["corpus"] == "synthetic:needle:needles=3,keys=8,noise=8" and study.corpora == [
        study.data["corpus"]
    ]


def test_a_plan_knows_the_vocabulary_of_the_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(Path(stated(tmp_path)))]) == 0
    assert "mqa corpus.needles=2" in capsys.readouterr().out


def test_scores_that_are_damaged_are_named_and_nothing_is_told(study, tmp_path, capsys):
    copy = tmp_path / "studies"
    shutil.copytree(study.parent, copy)
    content = json.loads((study / "study.json").read_text())
    scores = copy / content["runs"][0]["folder"] / "scores.json"
    scores.write_text(scores.read_text()[:-40])
    for command in ("report", "compare"):
        assert main([command, str(copy / "recall")]) == 2
        assert f"{scores} is not there or not what was written there" in capsys.readouterr().err
