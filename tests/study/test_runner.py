"""A study runs what is missing, shares runs, survives failures and interruptions, and reports what it found."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import command, synthetic_articles

from mla_experiments.cli import main
from mla_experiments.errors import Stopped, UserError
from mla_experiments.evaluation.scores import read_scores
from mla_experiments.manifest import write_record
from mla_experiments.report import study as report_of_study
from mla_experiments.run_files import read_run
from mla_experiments.study import read_study, record, work
from mla_experiments.study.runner import prepare_data
from mla_experiments.study.trials import Trials
from mla_experiments.study.tuning import Factor, Space, design
from mla_experiments.training.identity import RECORDED_FIRST
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
    monkeypatch.setattr(
        Run, "train", lambda run, *rest, **more: (begun.append(run.folder.name), train(run, *rest, **more))
    )
    return begun


def content(tmp_path, name, studies="studies"):
    return json.loads((tmp_path / studies / name / "study.json").read_text())


def test_a_study_tries_rates_then_seeds_does_only_what_is_missing_and_shares_runs(state, tmp_path, monkeypatch, capsys):
    begun = trained(monkeypatch)
    path = state("first", learning_rate=[1e-3, 1e-2], seeds=[0, 1])
    assert main(["study", path]) == 0
    assert len(begun) == len(set(begun)) == 2 * (2 + 2)
    said = capsys.readouterr()
    assert "[8/8] mla, learning rate" in said.out and "other versions" not in said.out
    assert "Writing model shards" not in said.err
    first = content(tmp_path, "first")
    assert first["complete"] and len(first["runs"]) == 8
    for name in ("mha", "mla"):
        tried = [run for run in first["runs"] if run["variant"] == name and run["is_tuning"]]
        assert {run["seed"] for run in tried} == {1000}, "which takes no part in the comparison"
        losses = {
            run["settings"]["learning_rate"]: read_scores(tmp_path / "studies" / run["folder"])["validation"].nats.sum()
            for run in tried
        }
        others = [run for run in first["runs"] if run["variant"] == name and not run["is_tuning"]]
        assert [run["seed"] for run in others] == [0, 1]
        assert {run["settings"]["learning_rate"] for run in others} == {min(losses, key=losses.get)}
    parameters = [variant["parameters"] for variant in first["variants"]]
    assert max(parameters) / min(parameters) < 1.005

    assert main(["study", path]) == 0
    assert len(begun) == 8, "the second time there is nothing to do"
    assert main(["study", state("second", learning_rate=[1e-3, 1e-2], seeds=[0, 1, 2])]) == 0
    assert len(begun) == 8 + 2, "another study does only what no study has done"
    assert main(["report", "studies/first"]) == 0
    assert "[10/10]" in capsys.readouterr().out


def test_every_mechanism_tries_as_many_points_of_its_own_space(state, tmp_path, monkeypatch, capsys):
    begun = trained(monkeypatch)
    space = {"trials": 3, "learning_rate": [1e-3, 1e-2], "initialization": ["normal", "zero"],
             "attention.latent_norm": [True, False]}  # fmt: skip
    path = state("tuned", tuning=space, seeds=[0, 1, 2])
    assert main(["plan", path]) == 0
    assert main(["study", path]) == 0
    assert len(begun) == len(set(begun)) == 2 * (3 + 3)
    found = content(tmp_path, "tuned")
    tried = {
        name: [run["settings"] for run in found["runs"] if run["variant"] == name and run["is_tuning"]]
        for name in ("mha", "mla")
    }
    assert len(tried["mha"]) == len(tried["mla"]) == 3
    for mha, mla in zip(tried["mha"], tried["mla"], strict=True):
        assert mha == {name: value for name, value in mla.items() if name != "attention.latent_norm"}, "the same points"
    assert all(1e-3 <= one["learning_rate"] <= 1e-2 for one in tried["mla"])
    for run in found["runs"]:
        config = json.loads((tmp_path / "studies" / run["folder"] / "config.json").read_text())
        settings = run["settings"]
        assert config.get("initialization", "normal") == settings["initialization"]
        if "attention.latent_norm" in settings:
            assert config["attention_options"].get("latent_norm", True) == settings["attention.latent_norm"]
    totals = [variant["parameters"] for variant in found["variants"]]
    assert max(totals) / min(totals) < 1.005
    assert main(["report", "studies/tuned"]) == 0
    capsys.readouterr()
    code = main(["plan", path, "--difference", "5"])
    said = capsys.readouterr()
    found = "by 3 seeds (for mla against mha; this study has 3): 12 runs" in said.out
    assert found if code == 0 else "needs a pair of variants with three seeds and ten" in said.err  # documents
    report = (tmp_path / "studies" / "tuned" / "report.md").read_text()
    assert "initialization" in report and "What tuning is worth" in report


HALVED = {
    "train_tokens": 12 * 128, "warmup_tokens": 4 * 128, "seeds": [0], "attention": "mla", "match": "none",
    "tuning": {"trials": 4, "halving": [0.25, 0.5], "learning_rate": [1e-3, 1e-1]},
}  # fmt: skip


def test_the_better_half_of_the_trials_trains_anew_on_more_tokens(state, tmp_path, monkeypatch, capsys):
    """Of four trials of three steps two train six steps, and one of them twelve: each as a study of so few would."""
    for name, nothing in {"decode_speeds": {"mla": {}}, "training_speeds": {}, "continuation": ""}.items():
        monkeypatch.setattr(record, name, lambda *_, nothing=nothing: nothing)
    begun, train = trained(monkeypatch), Run.train
    path = state("halved", **HALVED)

    def stopping(run, *rest, **more):
        if len(begun) == 5:
            raise Stopped("Stopped at step 4 of 6; x is saved. Go on with --resume.")
        return train(run, *rest, **more)

    monkeypatch.setattr(Run, "train", stopping)
    assert main(["study", path]) == 130
    monkeypatch.setattr(Run, "train", train)
    assert main(["study", path]) == 0
    assert len(begun) == len(set(begun)) == 4 + 2 + 1 + 1, "and the seed"
    found = content(tmp_path, "halved")
    *trials, confirmed = found["runs"]
    assert found["complete"] and [run["share"] for run in trials] == [0.25] * 4 + [0.5] * 2 + [1.0]
    values = {run["folder"]: validation_nats(tmp_path, run) for run in trials}
    for share, goes_on in ((0.25, 2), (0.5, 1)):
        on_it = sorted((run for run in trials if run["share"] == share), key=lambda run: values[run["folder"]])
        assert [run["halved"]["place"] for run in on_it] == list(range(1, 2 * goes_on + 1))
        more = [run["settings"] for run in trials if run["share"] == 2 * share]
        assert more == [run["settings"] for run in on_it[:goes_on]], "the better half"
    assert confirmed["settings"] == trials[-1]["settings"]

    alone = {"trials": 4, "learning_rate": [1e-3, 1e-1]}
    few = HALVED | {"tuning": alone, "train_tokens": 3 * 128, "warmup_tokens": 128}
    assert main(["study", state("few", **few)]) == 0
    assert len(begun) == 8 + 1, "its seed: the trials are those of a quarter, schedule and all"

    monkeypatch.setattr(report_of_study, "draw", lambda *_: [])
    assert main(["report", "studies/halved"]) == 0
    report = (tmp_path / "studies" / "halved" / "report.md").read_text()
    assert "So trying took 4,608 tokens in place of 6,144;" in report and "| 2 of 4 | has more " in report
    capsys.readouterr()
    assert main(["plan", path]) == 0
    assert f" {4608 + 1536:,} " in capsys.readouterr().out


def validation_nats(tmp_path, run):
    return read_scores(tmp_path / "studies" / run["folder"])["validation"].nats.sum()


def test_more_trials_keep_those_that_were_tried():
    factors = {"learning_rate": Factor((1e-3, 1e-2), True), "initialization": Factor(("normal", "zero"), False)}
    few, more = (design(Space(trials, factors), "mha") for trials in (5, 9))
    assert len(more) == 9 and more[:5] == few


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tuning": {"learning_rate": [1e-3, 1e-2]}}, "must state trials and what is tuned"),
        ({"tuning": {"trials": 4}}, "states trials but nothing to tune"),
        ({"tuning": {"trials": 1, "learning_rate": [1e-3, 1e-2]}}, "tuning.trials=1 must be at least 2"),
        ({"tuning": {"trials": 4, "learning_rate": []}}, "must be a list of choices, or of the two ends of a range"),
        ({"tuning": {"trials": 4, "learning_rate": [1e-2, 1e-3]}}, "a range from a lower to a higher positive number"),
        ({"tuning": {"trials": 4, "learning_rate": ["low", "high"]}}, "learning_rate=low cannot be"),
        ({"tuning": {"trials": 2, "initialization": ["normal", "scaled", "zero"]}}, "fewer than the 3 values of"),
        ({"tuning": {"trials": 4, "attention.num_key_value_heads": [1, 2]}}, "is of none of mha, mla"),
        ({"tuning": {"trials": 4, "attention.latent_norm": ["yes", "no"]}}, "latent_norm='yes' must be True or False"),
        ({"tuning": {"trials": 4, "initialisation": ["normal", "zero"]}}, "did you mean initialization?"),
        ({"tuning": {"trials": 4, "initialization": ["normal", "zerro"]}}, "initialization='zerro' is unknown"),
        ({"tuning": {"trials": 4, "optimizer": ["adamw", "mouon"]}}, "optimizer=mouon is unknown; did you mean muon?"),
        ({"optimizer": ["adamw", "mouon"]}, "optimizer=mouon is unknown; did you mean muon?"),
        ({"positions": ["rope", "lerned"]}, "positions='lerned' is unknown"),
        ({"tuning": {"trials": 4, "train_tokens": [1, 2]}}, "tuning.train_tokens changes what is compared"),
        ({"tuning": {"trials": 4, "initialization": ["zero", "zero"]}}, "names zero twice"),
        ({"tuning": {"trials": 4, "learning_rate": [1e-3, 1e-2]}, "learning_rate": [1e-3, 2e-3]}, "beside tuning"),
        ({"tuning": {"trials": 4, "initialization": ["normal", "zero"]}, "initialization": ["normal", "zero"]},
         "initialization is tuned and stated beside tuning"),
        ({"seeds": [0, 1000]}, "seeds has 1000, which tunes"),
        ({"tuning": {"trials": 4, "learning_rate": [1e-3, 1e-2]}, "learning_rate": 1e-3}, "learning_rate is tuned and"),
        *(({"tuning": {"trials": 4, "halving": halving, "learning_rate": [1e-3, 1e-2]}} | more, said)
          for halving, more, said in [
              (0.5, {}, "tuning.halving=0.5 must be a list"),
              ([1.5], {}, "tuning.halving=1.5 must be below 1"),
              ([0.0], {}, "tuning.halving=0.0 must be above 0"),
              (["half"], {}, "tuning.halving=half must be a number"),
              ([0.5, 0.25], {}, "must rise from each share to the next"),
              ([0.1, 0.2, 0.5], {}, "halves 3 times, but of 4 trials one is left after 2; give at most 2"),
              ([0.9], {}, "=[0.9] would train 5 of 5 steps for a share of 0.9, as many as for the next"),
              ([0.25, 0.3], {}, "would train 2 of 5 steps for a share of 0.25"),
              ([0.5], {"max_steps": 4}, "max_steps=4 is the same for every share of tuning.halving; state train"),
              ([0.5], {"warmup_steps": 4}, "state warmup_tokens instead"),
              ([0.5], {"batch_size": 0}, "batch_size=0 must be at least 1"),
          ]),
        ({"match": "cache", "cache_bytes_per_token": 64, "tuning": {"trials": 4, "attention.kv_lora_rank": [4, 6]}},
         "attention.kv_lora_rank is what match=cache solves for"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_is_refused_before_anything_is_prepared(state, tmp_path, capsys, more, said):
    for done in ("plan", "study"):
        assert main([done, state("wrong", **more)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


def test_a_range_is_one_however_its_ends_are_written(tmp_path):
    designs = []
    for ends in ("[1.0e-3, 1.0e-2]", "[1e-3, 1e-2]", "[0.001, 1e-2]"):  # PyYAML reads 1e-3 as a text
        (tmp_path / "study.yaml").write_text(f"attention: mha\ntuning: {{trials: 6, learning_rate: {ends}}}\n")
        designs.append(read_study(tmp_path / "study.yaml").designs)
    assert len(designs[0]["mha"]) == 6 and designs[0] == designs[1] == designs[2]


@pytest.mark.parametrize(
    "sweep", ["weight_decay: [0.1, 1e-1]", "tie_word_embeddings: [true, 'yes']", "learning_rate: [0.001, 1e-3]"]
)
def test_a_value_that_is_swept_twice_is_refused_however_it_is_written(tmp_path, capsys, sweep):
    path = tmp_path / "study.yaml"
    path.write_text(f"attention: mha\n{sweep}\n")
    assert main(["plan", str(path)]) == 2
    assert "twice; once is enough" in capsys.readouterr().err


def test_a_failed_run_is_reported_and_the_others_go_on(state, tmp_path, monkeypatch, capsys):
    train = Run.train

    def broken(run, *rest, **more):
        if run.attention == "mha":
            raise RuntimeError("no room\nat all")
        return train(run, *rest, **more)

    monkeypatch.setattr(Run, "train", broken)
    assert main(["study", state("broken")]) == 1
    assert "mha, learning rate 0.003, seed 0: no room" in capsys.readouterr().err
    assert [run["done"] for run in content(tmp_path, "broken")["runs"]] == [False, True]
    monkeypatch.setattr(Run, "train", train)
    assert main(["study", state("broken")]) == 0
    assert content(tmp_path, "broken")["complete"]


def test_a_stopped_study_goes_on_with_the_same_command(state, tmp_path, monkeypatch, capsys):
    train = Run.train

    def stopping(run, *rest, **more):
        if run.attention == "mla":
            raise Stopped("Stopped at step 2 of 5; x is saved. Go on with --resume.")
        return train(run, *rest, **more)

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


def test_what_is_swept_makes_runs_of_its_own_and_each_is_built_once(state, tmp_path, monkeypatch):
    built, make = [], Run.__init__
    monkeypatch.setattr(Run, "__init__", lambda run, *rest: (built.append(run), make(run, *rest))[1])
    begun = trained(monkeypatch)
    assert main(["study", state("smooth", attention="mha", label_smoothing_factor=[0.0, 0.3], match="none")]) == 0
    assert len(set(begun)) == len(built) == 2
    runs = content(tmp_path, "smooth")["runs"]
    first, second = (read_scores(tmp_path / "studies" / run["folder"])["test"].nats.sum() for run in runs)
    assert first != second


def test_speeds_are_measured_anew_where_the_study_states_other_models(state, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(record, "decode_speeds", lambda trials: (measured.append(trials), {"mha": {}})[1])
    for name, nothing in {"training_speeds": {}, "continuation": ""}.items():
        monkeypatch.setattr(record, name, lambda *_, nothing=nothing: nothing)
    for count, more in ((1, {}), (1, {}), (1, {"seeds": [0, 1]}), (2, {"hidden_size": 32}), (3, {"positions": "none"})):
        assert main(["study", state("edited", attention="mha", match="none", **more)]) == 0
        assert len(measured) == count
    for what, other in (("library_versions", {"torch": "99"}), ("sources_hash", "other")):
        monkeypatch.setattr(record, what, lambda *_, other=other: other)
        count += 1
        assert main(["study", state("edited", attention="mha", match="none", **more)]) == 0
        assert len(measured) == count, "by other code they are other speeds"


def test_texts_of_one_name_have_each_a_folder_and_one_that_is_prepared_anew_is_none_of_a_study_under_way(
    state, tmp_path, monkeypatch
):
    """Else one study would train, score and save with the tokenizer of the other."""
    folders = set()
    for number, place in enumerate(("a", "b", "чтиво", "読")):
        path = tmp_path / place / f"{'text' if number < 2 else place}.txt"
        path.parent.mkdir()
        path.write_text("".join(synthetic_articles(40, seed=number)))
        study = read_study(state(f"of-{number}", attention="mha", corpus=str(path)))
        folders.add(Trials(study, tmp_path / "studies").data)
    assert len(folders) == 4
    trials = Trials(study, tmp_path / "studies")
    prepare_data(study, *study.corpora, trials.data)
    (task, *_) = trials.tasks()
    trial = trials.trial(task)  # as it begins
    path.write_text("".join(synthetic_articles(60, seed=9)))
    prepare_data(study, *study.corpora, trials.data)
    with pytest.raises(UserError, match=r"was made by tokenizer|prepared from other text"):
        work.train_and_score(trials, trial)
    assert not (trial.run.folder / "model.safetensors").exists()


def test_a_run_that_eval_scored_on_other_text_is_scored_again_and_not_reported_till_then(
    state, tmp_path, monkeypatch, capsys
):
    path = state("mixed")
    assert main(["study", path]) == 0
    scores = tmp_path / "studies" / content(tmp_path, "mixed")["runs"][0]["folder"] / "scores.json"
    before = scores.read_bytes()
    (tmp_path / "other.txt").write_text("".join(synthetic_articles(40, seed=1)))
    data = command("data", corpus="other.txt", vocab_size=300, sequence_length=32)
    assert main(data) == main(["eval", str(scores.parent)]) == 0
    assert scores.read_bytes() != before
    assert main(["report", "studies/mixed"]) == 2
    assert "has been scored on other text since than the study's; the same" in capsys.readouterr().err
    begun = trained(monkeypatch)
    assert main(["study", path]) == 0
    assert scores.read_bytes() == before and not begun


def test_runs_by_other_code_are_named_and_taken_only_where_that_is_accepted(state, tmp_path, monkeypatch, capsys):
    path = state("first", attention="mha")
    assert main(["study", path]) == 0
    (run,) = content(tmp_path, "first")["runs"]
    folder = tmp_path / "studies" / run["folder"]
    write_record(folder / "run.json", read_run(folder) | {"sources": "0" * 64})
    begun = trained(monkeypatch)
    assert main(["study", path]) == 2
    said = capsys.readouterr().err
    assert "runs of this study by other code (sources (000000000000, now " in said and folder.name in said
    assert "--accept_changes takes them as the same" in said
    assert main(["study", path, "--accept_changes"]) == 0
    assert "Taken as the same are runs by other code" in capsys.readouterr().out
    facts = {name: value for name, value in read_run(folder).items() if name not in ("said", "sources", "before")}
    facts["identity"] = {name: value for name, value in facts["identity"].items() if name in RECORDED_FIRST}
    write_record(folder / "run.json", facts)
    assert main(["study", path]) == 0
    assert "by a version that did not record label_smoothing_factor" in capsys.readouterr().out.replace("\n", " ")
    assert not begun


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"num_train_epochs": [1, 2]}, "the field num_train_epochs, which is not taken: what is trained on"),
        ({"num_train_epoch": 1}, "the unknown field num_train_epoch"),
        ({"accept_changes": True}, "give --accept_changes to study"),
        ({"adam_beta2": [0.9, 2.0]}, "adam_beta2=2.0 must be a number from 0 and below 1"),
        ({"lr_scheduler_type": ["linear", "sawtooth"]}, "lr_scheduler_type=sawtooth cannot be"),
        ({"seeds": [2**32]}, "seeds=4294967296 must be below 4,294,967,296"),
        ({"loss_on": "foo"}, "loss_on=foo is unknown"),
        ({"loss_on": "answers"}, "loss_on=answers is for synthetic corpora, but "),
        ({"lr_scheduler_kwargs": 5}, "lr_scheduler_kwargs"),
        ({"report_to": "foo"}, "report_to"),
        ({"batch_size": 2**62}, "batch_size=4611686018427387904 of sequence_length=32 is more than anything trains on"),
    ],
)
def test_fields_of_the_trainer_are_refused_before_anything_is_prepared(state, tmp_path, capsys, more, said):
    assert main(["study", state("refused", **more)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()
