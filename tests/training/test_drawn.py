"""Training on drawn rows: the same rows for every mechanism, exact resume, and scores that a plain pass agrees on."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from mla_experiments.cli import main
from mla_experiments.data.synthetic import task_named, task_of
from mla_experiments.errors import UserError
from mla_experiments.evaluation.recall import score_rows, score_task
from mla_experiments.evaluation.scores import read_scores
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model
from mla_experiments.run_files import read_metrics, read_run
from mla_experiments.training.callbacks import StopInGoodOrder
from mla_experiments.training.rows import IGNORED, DrawnRows

TINY = [
    "--preset=demo", "--sequence_length=24", "--hidden_size=16", "--num_attention_heads=2", "--num_hidden_layers=1",
    "--batch_size=8", "--per_device_train_batch_size=4", "--train_tokens=1920", "--warmup_tokens=384",
    "--validation_tokens=240",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a synthetic corpus, and a run on it."""
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["data", "--corpus", "synthetic:mqar:pairs=3,keys=6"]) == 0
        assert main(["train", "--attention", "mha", *TINY]) == 0
        assert main(["eval"]) == 0
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def test_rows_are_those_of_the_task_whatever_the_order_in_which_they_are_read():
    task = task_named("mqar", {"pairs": 2})
    rows = DrawnRows(task, 16, 600, "train", seed=3)
    forward = [rows[index] for index in (0, 1, 300, 599)]
    backward = [rows[index] for index in (599, 300, 1, 0)]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(forward, reversed(backward), strict=True))
    drawn = task.block(16, "train", 3, 1)
    assert rows[300]["input_ids"].tolist() == drawn.symbols[44, :-1].tolist()
    labels = rows[300]["shift_labels"]
    assert labels.tolist() == np.where(drawn.answers[44, 1:], drawn.symbols[44, 1:], IGNORED).tolist()
    every = DrawnRows(task, 16, 600, "train", seed=3, answers_alone=False)[300]
    assert every["labels"].tolist() == drawn.symbols[44, 1:].tolist()


def test_a_run_records_its_task_and_the_accuracy_of_validation(here):
    run = read_run(Path("weights/mha"))
    assert run["corpus"] == "synthetic:mqar:pairs=3,keys=6"
    assert run["identity"]["tokens"]["task"]["pairs"] == 3
    logged = [point for point in read_metrics(Path("weights/mha")) if "eval_accuracy" in point]
    assert logged and all(0 <= point["eval_accuracy"] <= 1 for point in logged)


def test_a_stopped_run_goes_on_to_the_same_weights(here):
    parts = ["train", "--attention", "mha", *TINY, "--run", "parts", "--save_steps", "4"]
    inner = StopInGoodOrder.on_step_end

    def stop(callback, args, state, control, **kwargs):
        if state.global_step == 5 and not control.should_training_stop:
            callback.ask(signal.SIGTERM, None)
        return inner(callback, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopInGoodOrder, "on_step_end", stop)
        assert main(parts) == 130
    assert main([*parts, "--resume"]) == 0
    whole, resumed = (load_model(Path(folder)).state_dict() for folder in ("weights/mha", "weights/parts/mha"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_scores_are_what_a_plain_pass_over_each_answer_gives(here):
    model, task = load_model(Path("weights/mha")), task_of("synthetic:mqar:pairs=3,keys=6")
    drawn = task.block(24, "test", 0, 0)
    scores = read_scores(Path("weights/mha"))["test"]
    for row in range(3):
        nats, wrong = 0.0, 0
        for place in np.flatnonzero(drawn.answers[row]):
            logits = model(torch.tensor(drawn.symbols[row : row + 1, :place])).logits[0, -1].double()
            nats -= logits.log_softmax(-1)[drawn.symbols[row, place]].item()
            wrong += int(logits.argmax() != drawn.symbols[row, place])
        assert scores.nats[row] == pytest.approx(nats, rel=1e-5) and scores.wrong[row] == wrong
    assert scores.tokens.tolist() == [3] * 256


def test_evaluation_has_a_row_for_every_condition(here):
    rows = json.loads(Path("results.json").read_text())["results"]
    names = [row["split"] for row in rows if row["model"] == "mha"]
    assert names == ["validation", "test", "pairs=1", "pairs=3", "pairs=6", "length=48", "length=96"]
    test = next(row for row in rows if row["split"] == "test")
    scores = read_scores(Path("weights/mha"))["test"]
    assert test["accuracy"] == pytest.approx(1 - scores.wrong.sum() / 768) and test["chance"] == pytest.approx(1 / 3)
    assert test["rows_right"] == pytest.approx(np.mean(scores.wrong == 0))
    assert "share of answers right" in Path("weights/mha/README.md").read_text()


def test_a_model_of_other_symbols_is_refused(here, capsys):
    assert main(["eval", "mha", "--corpus", "synthetic:mqar:pairs=3,keys=7"]) == 2
    assert "whose vocabulary is not that of synthetic:mqar:pairs=3,keys=7" in capsys.readouterr().err
    assert main(["eval", "mha", "--corpus", "synthetic:copy"]) == 2
    assert "--tasks copy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--sequence_length 11", "sequence_length=11 is too short for synthetic:mqar"),
        ("--run= --loss_on answers", "holds a run that differs in loss_on"),
        ("--run= --loss_on answers --sequence_length 26", "differs in"),
        ("--loss_on answer", "loss_on=answer is unknown; did you mean answers?"),
    ],
)
def test_what_does_not_fit_a_task_is_named_before_anything_is_trained(here, capsys, flags, said):
    assert main(["train", "--attention", "mha", *TINY, "--run", "none", *flags.split()]) == 2
    assert said in capsys.readouterr().err and not Path("weights/none").exists()


def test_learned_positions_are_not_asked_beyond(here):
    config = DecoderConfig(
        vocab_size=29, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=24,
        attention="mha", positions="learned",
    )  # fmt: skip
    scored = score_task(DecoderForCausalLM(config).eval(), task_of("synthetic:mqar:pairs=3,keys=6"), 24)
    assert "test" in scored and "length=48" not in scored


def test_a_perfect_model_has_all_right_and_a_blind_one_is_at_chance():
    """One that is told what follows is right every time; of answers that were shuffled a share is right by chance."""
    task = task_named("sums", {"modulus": 5})
    drawn = task.block(40, "test", 0, 0)

    class Told(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self, shown):
            super().__init__()
            self.shown, self.lm_head = torch.tensor(shown), torch.nn.Identity()

        def model(self, inputs, use_cache):
            following = self.shown[: len(inputs), 1:]
            return (torch.nn.functional.one_hot(following, task.num_symbols).float(),)

    assert score_rows(Told(drawn.symbols), drawn).wrong.sum() == 0
    shuffled = drawn.symbols.copy()
    shuffled[drawn.answers] = np.random.default_rng(0).permutation(shuffled[drawn.answers])
    blind = score_rows(Told(shuffled), drawn)
    assert 1 - blind.wrong.sum() / blind.tokens.sum() == pytest.approx(task.chance, abs=0.03)


def test_text_takes_no_loss_on_answers(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["train", "--attention", "mha", *TINY, "--data_dir", str(prepared), "--sequence_length", "16"]
    assert main([*flags, "--loss_on", "answers"]) == 2
    assert "loss_on=answers is for synthetic corpora" in capsys.readouterr().err


def test_a_synthetic_corpus_takes_no_text_column_and_gives_no_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "--corpus", "synthetic:copy", "--text_column", "body"]) == 2
    assert "text_column=body has no effect" in capsys.readouterr().err
    assert main(["data", "--corpus", "synthetic:copy", "--vocab_size", "300"]) == 2
    assert "vocab_size=300 has no effect on corpus=synthetic:copy" in capsys.readouterr().err
    from mla_experiments.data import load_corpus

    assert main(["data", "--corpus", "synthetic:copy"]) == 0
    with pytest.raises(UserError, match="is drawn and holds no text"):
        load_corpus(Path("data/corpus"))


def test_a_model_that_sees_two_symbols_cannot_recall():
    """What stands just before an answer says nothing of it, whatever is learnt: one of six is right by chance."""
    task = task_of("synthetic:mqar:pairs=3,keys=6")
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=task.num_symbols, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=24, attention="mha", sliding_window=2,
    )  # fmt: skip
    model, drawn = DecoderForCausalLM(config).eval(), task.block(24, "test", 0, 0)
    other = drawn.symbols.copy()
    other[:, 1:7] = task.block(24, "test", 1, 0).symbols[:, 1:7]  # other pairs, the same questions
    with torch.no_grad():
        one, two = (model(torch.tensor(symbols[:64, :-1])).logits for symbols in (drawn.symbols, other))
    torch.testing.assert_close(one[:, 8:], two[:, 8:])
    assert 1 - score_rows(model, drawn).wrong.sum() / drawn.answers.sum() < 1 / 6 + 0.05
