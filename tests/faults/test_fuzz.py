"""What the fuzzer found, by kind: each is refused in one sentence, on one line, or works."""

import json
from pathlib import Path

import pytest
from conftest import synthetic_articles

from mla_experiments.cli import COMMANDS, command, main
from mla_experiments.cli.saying import refusal
from mla_experiments.data.formats import KINDS, kind_of
from mla_experiments.manifest import read_record, write_record

TOLD = {"corpus": "text.txt", "preset": "demo", "attention": ["mla"]}


def refused(capsys, argv):
    """Run what is to be refused; return the sentence."""
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(synthetic_articles(12)))
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a\nb"], r"command a\nb is unknown"),
        (["plan", "a\r\n\x1b[31mb"], r"a\r\n\x1b[31mb"),
        (["eval", "\u202egnp", "--data-dir", "\udcff"], r"\udcff"),
        (["study", "text.txt", "--shard=a\nb"], r"shard=a\nb"),
    ],
)
def test_an_error_is_one_line_whatever_was_typed(here, capsys, argv, said):
    assert said in refused(capsys, argv)


def test_what_a_language_is_written_in_stays_as_it_is():
    assert refusal("data=日本 é — 💥") == "error: data=日本 é — 💥"


@pytest.mark.parametrize(
    "content",
    [
        "corpus: 2026-13-45\n", "corpus: !!timestamp x\n", "corpus: !!bool x\n", "corpus: !!int ''\n",
        f"vocab_size: {'9' * 5000}\n", "[" * 5000, "- corpus\n", "0\n", 'corpus: "a\\0b"\n', 'corpus: "\\uD800"\n',
        'corpus: [x, {y: "\\0"}]\n',
    ],
)  # fmt: skip
@pytest.mark.parametrize("argv", [["data", "--config", "odd.yaml"], ["study", "odd.yaml"]], ids=" ".join)
def test_a_yaml_file_that_the_library_cannot_read_is_named(here, capsys, argv, content):
    Path("odd.yaml").write_text(content)
    assert "=odd.yaml " in refused(capsys, argv)


def test_a_flag_in_a_file_is_no_more_than_json(here, capsys):
    Path("odd.yaml").write_text("corpus: {a: 2026-01-01}\n")
    assert "config=odd.yaml has corpus=" in refused(capsys, ["data", "--config", "odd.yaml"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preset", ["demo", "reference"]), ("attention", [[1]]), ("attention", {"mla": 1}), ("hidden_size", None),
        ("hidden_size", {"a": 1}), ("hidden_size", [16, None]), ("shuffle_seed", -1), ("shuffle_seed", 10**40),
        ("vocab_size", 10**40), ("learning_rate", {"mla": None}), ("match", {}), ("precision", {}),
    ],
)  # fmt: skip
def test_a_field_of_a_study_that_cannot_be_is_named(here, capsys, field, value):
    Path("odd.yaml").write_text(json.dumps(TOLD | {field: value}))
    assert field in refused(capsys, ["study", "odd.yaml"])


@pytest.mark.parametrize("huge", ["9" * 30, "9" * 400, str(2**63)])
@pytest.mark.parametrize(
    "argv",
    [["generate", "x", "--seed"], ["data", "--shuffle-seed"], ["data", "--vocab-size"], ["plan", "--contexts"],
     ["plan", "--batch-sizes"], ["plan", "--kv-lora-rank"], ["eval", "--limit"]],
    ids=" ".join,
)  # fmt: skip
def test_numbers_end_where_those_of_the_libraries_do(here, capsys, argv, huge):
    assert f"={huge} must be at most" in refused(capsys, [*argv, huge])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 2),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 2),
        (RuntimeError("a mistake of ours"), 70),
    ],
)
def test_too_little_memory_is_said_and_is_no_mistake_of_the_program(here, capsys, monkeypatch, error, code):
    def run(_):
        raise error

    monkeypatch.setattr(command("kernels"), "run", run)
    monkeypatch.setattr("tempfile.tempdir", str(here))
    assert main(["kernels"]) == code
    assert ("not enough memory" in capsys.readouterr().err) == (code == 2)


def test_a_record_holds_names_of_files_that_are_no_unicode(tmp_path):
    write_record(tmp_path / "record.json", {"folder": "\udcff é"})
    assert read_record(tmp_path / "record.json") == {"folder": "\udcff é"}


def test_the_fuzzer_has_files_of_every_kind(tmp_path):
    from faults.drawn import CORPORA
    from faults.playground import write_corpora

    write_corpora(tmp_path)
    local = [tmp_path / name for name in CORPORA if not name.startswith("synthetic:")]
    absent = [path.name for path in local if not path.exists()]
    assert not absent, f"CORPORA of tests/faults/drawn.py names {absent}; write_corpora of playground.py writes none"
    kinds = set(KINDS.values()) - {kind_of(path) for path in local}
    assert not kinds, f"CORPORA of tests/faults/drawn.py has no file that is read as {sorted(kinds)}"


def test_the_fuzzer_draws_every_command():
    from faults.drawn import SHARES

    assert SHARES.keys() == COMMANDS.keys()
