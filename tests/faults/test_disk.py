"""Folders that cannot be written, disks that are full: one sentence, and what was whole is kept."""

import errno
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY, command, full_disk
from safetensors import SafetensorError

from mla_experiments.cli import main
from mla_experiments.errors import UserError
from mla_experiments.manifest import file_hashes, whole_folder, write_json
from mla_experiments.training import checkpoints

TRAIN = command("train", attention="mla", **TINY)


def one_sentence(text):
    (said,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text
    return said


@pytest.fixture
def trained(train):
    """A folder with data and a finished run that was evaluated; the working folder."""
    assert train() == 0 and main(["eval"]) == 0
    return Path.cwd()


def refused_for_a_file(argv, capsys, file="other"):
    """Run a command that is to write where somebody's file lies."""
    Path(file).write_text("mine")
    Path("text.txt").write_text("the king sees the river . \n\n" * 2000)
    Path("tiny.yaml").write_text("corpus: text.txt\nattention: [mla]\nvocab_size: 258\npreset: demo\n")
    capsys.readouterr()
    assert main(argv) == 2
    assert file in one_sentence(capsys.readouterr().err)
    assert Path(file).read_text() == "mine"


@pytest.mark.parametrize(
    "argv",
    [
        [*TRAIN, "--weights-dir", "other"],
        [*TRAIN, "--weights-dir", "other/inner"],
        ["data", "--corpus", "text.txt", "--data-dir", "other"],
        ["eval", "--output-dir", "other"],
        ["eval", "--output-dir", "other/inner"],
        ["export", "mla", "other/inner"],
        ["study", "tiny.yaml", "--studies-dir", "other"],
    ],
)
def test_a_file_in_the_place_of_a_folder_is_kept_and_named(trained, capsys, argv):
    refused_for_a_file(argv, capsys)


def test_a_file_in_the_place_of_the_folder_of_figures_is_kept_and_named(prepared, drawn, monkeypatch, capsys):
    monkeypatch.chdir(prepared.parent)
    refused_for_a_file([*TRAIN, "--figures-dir", "other"], capsys)


@pytest.mark.parametrize("stage", ["corpus", "tokenizer", "tokens"])
def test_data_that_no_command_here_made_are_never_replaced(prepared, tmp_path, monkeypatch, capsys, stage):
    """`--data-dir mine --corpus mine/corpus` must not put the prepared corpus in the place of the text itself."""
    monkeypatch.chdir(tmp_path)
    folder = prepared / stage
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    (folder / "mine.txt").write_text("the king sees the river . \n\n" * 2000)
    asked = {"corpus": ["download", "--corpus", str(folder)], "tokenizer": ["tokenizer", "--vocab-size", "258"]}
    assert main(["data", *asked.get(stage, ["tokens", "--sequence-length", "32"])]) == 2
    assert "is not what a command here made, and is kept" in capsys.readouterr().err
    assert (folder / "mine.txt").is_file()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["data", "--corpus", "text.txt", "--vocab-size", "258", "--sequence-length", "32"], "data/corpus"),
        (["data", "tokenizer", "--vocab-size", "280"], "data/tokenizer"),
        ([*TRAIN, "--run", "new"], "weights/new/mla/partial/checkpoint-4"),
        (["export", "mla", "out"], "out"),
        (["eval", "--corpus", "text.txt"], "a file"),
    ],
)
def test_a_full_disk_costs_nothing_that_was_whole(trained, monkeypatch, capsys, argv, named):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", trained / "cache")  # where nothing is found ready
    Path("text.txt").write_text("the king sees the river . \n\n" * 2000)
    before = file_hashes(Path("data")) | file_hashes(Path("weights"))
    capsys.readouterr()
    with full_disk(20_000 if "--run" in argv else 2500):  # the record of a run fits, its checkpoint does not
        assert main(argv) == 2
    assert f"{named} c" in one_sentence(capsys.readouterr().err), "could not or cannot be written"
    after = file_hashes(Path("data")) | file_hashes(Path("weights"))
    assert {name: after.get(name) for name in before} == before
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (RuntimeError("file write failed"), UserError),  # torch's
        (SafetensorError("I/O error"), UserError),
        (Exception("Permission denied"), UserError),  # tokenizers'
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (torch.distributed.DistBackendError("connection lost"), torch.distributed.DistBackendError),
        (KeyError("a mistake of ours"), KeyError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_only_what_comes_of_writing_is_said_to_come_of_the_disk(tmp_path, error, raised):
    with pytest.raises(raised) as found, checkpoints.explained(tmp_path):
        raise error
    assert raised is not UserError or "see to space on the disk" in str(found.value)


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, UserError), (errno.EIO, OSError)])
def test_a_source_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path, number, raised):
    with pytest.raises(raised) as found, whole_folder(tmp_path / "new"):
        raise OSError(number, os.strerror(number))
    assert type(found.value) is raised and not list(tmp_path.iterdir())


def test_what_stands_beside_what_is_written_under_a_like_name_is_kept(tmp_path):
    """A user's `out.partial` is nobody's scratch."""
    for name in ("out.partial", "out.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.txt").write_text(name)
    (tmp_path / "record.json.partial").write_text("own")
    for _ in range(2):  # new, and in the place of what was there
        with whole_folder(tmp_path / "out") as scratch:
            (scratch / "made.txt").write_text("made")
        write_json(tmp_path / "record.json", {})
    assert {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {
        "out/made.txt": "made", "record.json": "{}\n", "record.json.partial": "own",
        "out.partial/own.txt": "out.partial", "out.replaced/own.txt": "out.replaced",
    }  # fmt: skip
