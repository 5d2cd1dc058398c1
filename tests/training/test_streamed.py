"""Training on a stream: packed as stored text is, and stopped anywhere and resumed it ends with the same bits."""

import contextlib
import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import paragraphs
from datasets import Dataset
from datasets.packaged_modules.parquet.parquet import Parquet
from processes import PATIENCE, changed, environment
from test_distributed import back_to
from test_faults import stop_when
from tqdm import tqdm

from mla_experiments.cli import main
from mla_experiments.data import load_corpus, load_tokenizer, load_tokens, open_stream, packing, streaming
from mla_experiments.errors import UserError
from mla_experiments.run_files import read_run
from mla_experiments.study import read_study
from mla_experiments.training import checkpoints
from mla_experiments.training import streamed as module
from mla_experiments.training.streamed import POSITION_FILE, StreamedSequences

STREAM = {"streaming": True, "data_dir": "streamed", "train_tokens": 25 * 128, "per_device_train_batch_size": 2}
RESULT = ("model.safetensors", "metrics.jsonl")


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(streaming, "GROUP_CHARACTERS", 500)


@pytest.fixture
def sequences(streamed):
    """Make sequences of the stream, four of them in a step."""
    manifest, tokenizer = (
        load_tokens(streamed / "tokens", streamed / "tokenizer")[1],
        load_tokenizer(streamed / "tokenizer"),
    )
    with contextlib.ExitStack() as opened:

        def make(length=32):
            stream = opened.enter_context(contextlib.closing(open_stream(streamed / "tokens", manifest["stream"])))
            return StreamedSequences(stream, tokenizer, length, 10_000, 4)

        yield make


def joined(streamed, epochs):
    """The tokens of the stream, made of the documents as they were written: all but those held out, again and again."""
    corpus, tokenizer = load_corpus(streamed / "corpus"), load_tokenizer(streamed / "tokenizer")
    held_out = [text for split in ("validation", "test") for text in corpus[split]["text"]]
    tokens = []
    for text in paragraphs():
        if text not in held_out:
            tokens += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return np.array([tokenizer.eos_token_id, *tokens * epochs])


def tokens_of(sequence):
    return np.concatenate([sequence["input_ids"].numpy(), sequence["labels"][-1:].numpy()])


@pytest.mark.parametrize("length", [7, 32, 1000])
def test_sequences_are_the_documents_joined_and_cut_over_epochs(streamed, sequences, length):
    expected = joined(streamed, epochs=3)
    rows = (len(expected) - 1) // length
    made = sequences(length)
    for index in range(rows):
        sequence = made[index]
        np.testing.assert_array_equal(tokens_of(sequence), expected[index * length : (index + 1) * length + 1])
        np.testing.assert_array_equal(sequence["input_ids"][1:], sequence["labels"][:-1])
        assert sequence["shift_labels"].tolist() == sequence["labels"].tolist()


def test_sequences_equal_the_packed_rows_of_the_same_documents(streamed, sequences, tmp_path):
    made, tokenizer = sequences(), load_tokenizer(streamed / "tokenizer")
    texts = [text for _, group in made.documents.groups() for text in group]
    batches = packing.token_batches(Dataset.from_dict({"text": texts}), tokenizer, tqdm(disable=True))
    counts = packing.pack(batches, tmp_path / "rows.arrow", 32, 300)
    rows, made = Dataset.from_file(str(tmp_path / "rows.arrow")), sequences()
    assert counts["rows"] == len(rows) > 40
    for index, row in enumerate(rows):
        assert {name: made[index][name].tolist() for name in row} == row


def test_a_sequence_depends_on_its_number_alone(sequences):
    made = sequences()
    forward = [tokens_of(made[index]).tolist() for index in range(120)]
    assert [tokens_of(made[index]).tolist() for index in reversed(range(120))] == forward[::-1]
    second = sequences()  # as the second of two processes, by two sequences in turn
    mine = [index for index in range(120) if index // 2 % 2]
    assert [tokens_of(second[index]).tolist() for index in mine] == [forward[index] for index in mine]


def test_going_on_reads_what_is_needed_and_nothing_before(streamed, sequences, monkeypatch):
    expected, read = joined(streamed, epochs=3), []

    def counting(texts, tokenizer):
        read.extend(texts)
        return packing.joined_tokens(texts, tokenizer)

    monkeypatch.setattr(module, "joined_tokens", counting)
    made, places = sequences(), set()
    for index in range(0, 120, 4):
        made[index + 3]  # the Trainer has read less than a step ahead when it saves
        position = json.dumps(made.position(index))
        places.add(position)
        again = sequences()
        read.clear()
        again.go_to(json.loads(position))
        np.testing.assert_array_equal(tokens_of(again[index]), expected[index * 32 : (index + 1) * 32 + 1])
        assert 0 < len(read) <= 2 * 4, "more than the group in which it begins, of 4 documents or fewer, and the next"
    assert len(places) > 15


def test_memory_holds_a_group_and_the_places_of_one_step(sequences):
    made = sequences()
    most = [(len(made.left), len(made.positions)) for index in range(2000) if made[index]]
    assert max(tokens for tokens, _ in most) < 1000 and max(places for _, places in most) < 10


def contents(run):
    return {name: Path(f"weights/{run}/mla/{name}").read_bytes() for name in RESULT}


def test_a_run_resumed_from_any_checkpoint_ends_with_the_same_bits(train, streamed):
    assert train(run="whole", save_steps=1, save_total_limit=99, **STREAM) == 0
    tokens = joined(streamed, epochs=2)
    epoch = (len(tokens) - 1) // 2 // 128  # steps
    assert 5 < epoch < 20
    for step in (3, epoch, epoch + 1, 24):
        assert 0 not in tokens[step * 128 - 5 : step * 128 + 5], "or the checkpoint is not in the middle of a document"
        position = json.loads(Path(f"weights/whole/mla/checkpoint-{step}/{POSITION_FILE}").read_text())
        assert 0 <= step * 128 - position["tokens"] < 128 * 4, "a group of documents, not all of them, is read again"
        shutil.copytree("weights/whole", "weights/stopped")
        back_to(Path("weights/stopped/mla"), step)
        (Path("weights/stopped/mla") / "model.safetensors").unlink()
        assert train(run="stopped", resume=True, save_steps=25, **STREAM) == 0
        assert contents("stopped") == contents("whole"), step
        shutil.rmtree("weights/stopped")


@pytest.mark.parametrize("step", [3, 7, 12])
def test_a_step_left_in_its_middle_keeps_a_near_position(train, streamed, monkeypatch, step):
    flags = {**STREAM, "per_device_train_batch_size": 1}
    stop_when(monkeypatch, "on_substep_end", {step: 1})
    assert train(**flags) == 130
    position = json.loads(Path(f"weights/mla/checkpoint-{step}/{POSITION_FILE}").read_text())
    assert 0 <= step * 128 - position["tokens"] < 128 * 4


def test_a_killed_run_goes_on_to_the_same_bits_and_stores_no_text(train, streamed, tmp_path):
    flags = {**STREAM, "train_tokens": 60 * 128, "save_steps": 7, "logging_steps": 3}
    assert train(run="whole", **flags) == 0
    home = {"HF_HOME": str(tmp_path / "huggingface")}
    killed_at_14 = (
        "from mla_experiments.training import checkpoints\n"
        "inner = checkpoints.publish\n"
        "def publish(folder, run_folder):\n"
        "    inner(folder, run_folder)\n"
        "    if folder.name == 'checkpoint-14': os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.publish = publish"
    )
    settings = {"cwd": tmp_path, "env": environment() | home, "capture_output": True, "text": True}
    killed = subprocess.run(changed(killed_at_14, run="killed", **flags), timeout=PATIENCE, **settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = subprocess.run(changed("", run="killed", resume=True, **flags), timeout=PATIENCE, **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert contents("killed") == contents("whole")
    corpus = load_corpus(streamed / "corpus")
    unsampled = set(paragraphs()).difference(*(split["text"] for split in corpus.values()))
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".parquet"]
    for text in unsampled:
        assert not any(text[:30].encode() in file.read_bytes() for file in files)
    assert len(unsampled) > 3 and (tmp_path / "huggingface") in {parent for file in files for parent in file.parents}


def test_a_lost_connection_is_one_sentence_and_the_run_goes_on(train, streamed, monkeypatch, capsys):
    assert train(run="whole", **STREAM) == 0
    read, lost = Parquet._generate_tables, []

    def breaking(builder, files, *args, **kwargs):
        if "train-00002" in files[0] and not lost:
            lost.append(files)
            raise ConnectionError("connection reset by peer")
        yield from read(builder, files, *args, **kwargs)

    monkeypatch.setattr(Parquet, "_generate_tables", breaking)
    assert train(run="broken", **STREAM) == 2
    said = capsys.readouterr().err
    assert "shards could not be read on (connection reset by peer); the same command tries again" in said
    assert "Traceback" not in said and checkpoints.in_order(Path("weights/broken/mla"))
    assert train(run="broken", resume=True, **STREAM) == 0
    assert contents("broken") == contents("whole")


def test_the_source_is_part_of_what_determines_a_run(train, streamed, tmp_path, capsys):
    assert train(**STREAM) == 0
    identity = read_run(Path("weights/mla"))["identity"]
    assert identity["tokens"]["stream"].keys() == {"corpus", "text_column", "version"}
    assert identity["tokens"]["stream"]["corpus"] == str(tmp_path / "shards")
    assert all((folder / POSITION_FILE).is_file() for folder in checkpoints.in_order(Path("weights/mla")))
    shard = tmp_path / "shards/train-00001-of-00003.parquet"
    shard.write_bytes((tmp_path / "shards/train-00000-of-00003.parquet").read_bytes())
    assert train(run="other", **STREAM) == 2
    assert "is not what it was when the data were prepared" in capsys.readouterr().err
    argv = ["--streaming", "--sample-characters", "4000", "--vocab-size", "300", "--sequence-length", "32"]
    assert main(["data", "--corpus", str(tmp_path / "shards"), "--data-dir", "streamed", *argv]) == 0
    assert train(**STREAM) == 2
    assert "weights/mla holds a run that differs in" in (said := capsys.readouterr().err)
    assert "tokens.stream.version" in said


def test_streaming_is_asked_for_where_data_are_streamed_and_nowhere_else(train, streamed, capsys):
    assert train(**{**STREAM, "streaming": False}) == 2
    assert "is not stored but read while training; say so with --streaming" in capsys.readouterr().err
    assert train(streaming=True) == 2
    assert "streaming=True needs data prepared with it" in capsys.readouterr().err
    assert train(dataloader_num_workers=2, **STREAM) == 2
    assert "dataloader_num_workers=2 does not go with --streaming" in capsys.readouterr().err
    assert not Path("weights").exists()


def test_a_study_refuses_to_stream(tmp_path):
    (tmp_path / "study.yaml").write_text("corpus: hub:someone/web\nstreaming: true\n")
    with pytest.raises(
        UserError, match="has the field streaming, which a study sets itself; studies store their corpora"
    ):
        read_study(tmp_path / "study.yaml")


def test_a_streamed_run_is_evaluated_on_the_texts_held_out(train, streamed, capsys):
    assert train(**STREAM) == 0
    assert main(["eval", "--data-dir", "streamed"]) == 0
    rows = json.loads(Path("results.json").read_text())["results"]
    corpus = load_corpus(streamed / "corpus")
    assert {row["split"]: row["documents"] for row in rows} == {s: len(corpus[s]) for s in ("validation", "test")}
