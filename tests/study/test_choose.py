"""A question becomes a study that can be run and edited, or one sentence that says what would give an answer."""

from pathlib import Path

import pytest
from conftest import synthetic_articles

from mla_experiments.cli import main
from mla_experiments.cli.choose import size_of
from mla_experiments.errors import UserError
from mla_experiments.report.answer import at_the_budget
from mla_experiments.study import proposal, read_study
from mla_experiments.study.proposal import shape_for


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(proposal, "LEAST_TOKENS", 2000)
    Path("own.txt").write_text("".join(synthetic_articles(400)))
    return tmp_path


def test_a_question_becomes_a_study_and_an_answer(place, capsys, monkeypatch):
    monkeypatch.setattr(proposal, "SEEDS", (0,))
    monkeypatch.setattr(proposal, "tokens_within", lambda *_: (4096, [1e4] * 3))
    asked = "choose own.txt --cache-bytes-per-token 256 --params 150k --attention mha mqa mla --no-browser"
    assert main(asked.split()) == 0
    said = capsys.readouterr().out
    assert "Cache, of 256 bytes a token: mha 1,024 (above it, for comparison), mqa 256, mla" in said
    assert "At 256 bytes of cache a token, take m" in said
    assert "Above the budget, and here for comparison alone: mha (1,024 bytes)." in said
    study = read_study(Path("studies/choose-own.yaml"))
    assert study.match == "cache" and study.data["vocab_size"] == "auto" and study.space.trials == 3
    edited = Path("studies/choose-own.yaml").read_text() + "# mine\n"
    Path("studies/choose-own.yaml").write_text(edited)
    assert main([*asked.split(), "--plan-only"]) == 0
    assert "choose-own.yaml stands for this question, and is gone on with as it is." in capsys.readouterr().out
    assert main([*asked.replace("256", "512").split(), "--plan-only"]) == 2
    assert "choose-own.yaml is there for another question, and is kept" in capsys.readouterr().err
    assert Path("studies/choose-own.yaml").read_text() == edited
    Path("own.txt").write_text("".join(synthetic_articles(500)))
    assert main([*asked.split(), "--plan-only"]) == 2
    said = capsys.readouterr().err
    assert "corpus=own.txt has changed since studies/choose-own.yaml was proposed for it" in said
    assert "mla-experiments study studies/choose-own.yaml" in said
    report = Path("studies/choose-own/report.md").read_text()
    assert report.splitlines()[2].startswith("**At 256 bytes of cache a token, take m")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--cache-bytes-per-token 256 --params 10", "params=10 is less than half of the smallest model"),
        ("--cache-bytes-per-token 256 --params five", "params=five must be a number of parameters"),
        ("--cache-bytes-per-token 3 --params 150k", "cache_bytes_per_token=3 is met by no variant"),
        ("--cache-bytes-per-token 256 --params 150k --hours 1e-9", "give --hours"),
        ("--params 150k", "cache_bytes_per_token"),
    ],
)
def test_what_gives_no_answer_says_what_would(place, capsys, asked, said):
    assert main(["choose", "own.txt", "--plan-only", *asked.split()]) == 2
    assert said in capsys.readouterr().err.replace("-bytes-per-token", "_bytes_per_token")
    assert not Path("studies/choose-own.yaml").exists()


def test_a_text_too_small_says_how_much_is_needed(place, capsys):
    Path("small.txt").write_text("".join(synthetic_articles(30)))
    assert main(["choose", "small.txt", "--cache-bytes-per-token", "256", "--params", "150k", "--plan-only"]) == 2
    assert "to test on, and a verdict takes 10; give about" in capsys.readouterr().err


def test_a_task_and_a_file_that_is_none_of_ours_are_refused(place, capsys):
    assert main(["choose", "synthetic:mqar", "--cache-bytes-per-token", "256", "--plan-only"]) == 2
    assert "corpus=synthetic:mqar is a task, and this chooses by how well text is predicted" in capsys.readouterr().err
    Path("studies").mkdir(exist_ok=True)
    Path("studies/choose-own.yaml").write_bytes("# für mich".encode("latin-1"))
    assert main(["choose", "own.txt", "--cache-bytes-per-token", "256", "--plan-only"]) == 2
    assert "choose-own.yaml is there for another question, and is kept" in capsys.readouterr().err
    assert main(["choose", "own.txt", "--cache-bytes-per-token", "256", "--params", "9" * 400]) == 2
    assert "must be a number of parameters" in capsys.readouterr().err


def test_a_size_is_met_by_the_nearest_model():
    for wanted in (300_000, 2_000_000, 20_000_000):
        shape = shape_for(wanted, 2000)
        heads = shape["num_attention_heads"]
        assert shape["hidden_size"] % (2 * heads) == 0 and heads % 4 == 0
    assert shape_for(2_000_000, 2000)["hidden_size"] < shape_for(20_000_000, 2000)["hidden_size"]
    assert [size_of(text) for text in ("5M", "800k", "1.5b", "123")] == [5_000_000, 800_000, 1_500_000_000, 123]
    with pytest.raises(UserError):
        size_of("M")


def test_a_study_without_a_budget_has_no_such_answer():
    class Line:
        budget = None

    assert at_the_budget(None, [Line()]) == []
