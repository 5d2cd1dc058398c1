"""A corpus too large for the disk: read in order from any place, held-out texts apart, nothing of the rest stored."""

import json
import random
import shutil
import time
import tracemalloc
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import paragraphs, write_shards

from mla_experiments.cli import main
from mla_experiments.data import DocumentStream, load_corpus, open_stream, prepare_corpus, streaming
from mla_experiments.errors import UserError
from mla_experiments.manifest import read_manifest


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(streaming, "GROUP_CHARACTERS", 500)


def documents(stream, state=None):
    return [text for _, texts in stream.groups(state) for text in texts]


def test_every_document_comes_once_in_order_but_those_without_text(tmp_path):
    texts = [*paragraphs(10), " \n", "", *paragraphs(20)[10:]]
    stream = DocumentStream(str(write_shards(tmp_path / "shards", texts)), "text")
    assert documents(stream) == paragraphs(20) == documents(stream)


def test_reading_goes_on_from_every_state_without_the_files_before(tmp_path):
    folder = write_shards(tmp_path / "shards", paragraphs())
    stream = DocumentStream(str(folder), "text")
    states, seen = [], 0
    for state, texts in stream.groups():
        states.append((json.loads(json.dumps(state)), seen))
        seen += len(texts)
    assert len(states) > 8
    for state, before in states:
        again = DocumentStream(str(folder), "text")
        assert documents(again, state) == paragraphs()[before:]
    state, before = next((state, before) for state, before in states if before > 8 + 3)  # files of 8, row groups of 3
    again = DocumentStream(str(folder), "text")
    (folder / "train-00000-of-00003.parquet").write_bytes(b"not to be read")
    assert documents(again, state) == paragraphs()[before:]


def test_training_reads_all_but_the_held_out_texts_wherever_they_stand(tmp_path):
    texts = paragraphs()
    texts += texts[:12]  # a second time, outside of the sample
    write_shards(tmp_path / "shards", texts)
    argv = ["data", "--corpus", str(tmp_path / "shards"), "--streaming", "--sample-characters", "4000"]
    argv += ["--vocab-size", "300", "--sequence-length", "32", "--data-dir", str(tmp_path / "data")]
    assert main(argv) == 0
    corpus = load_corpus(tmp_path / "data/corpus")
    held_out = {text for split in ("validation", "test") for text in corpus[split]["text"]}
    assert held_out & set(texts[:12]), "or nothing is held out that comes a second time"
    assert 4000 <= sum(len(text) for split in corpus.values() for text in split["text"]) < 4500
    manifest = read_manifest(tmp_path / "data/tokens", "")
    assert manifest["texts_held_out"] == len(held_out) and manifest["splits"].keys() == {"validation", "test"}
    stream = open_stream(tmp_path / "data/tokens", manifest["stream"])
    assert documents(stream) == [text for text in texts if text not in held_out]


def test_nothing_but_the_sample_is_stored(tmp_path, streamed):
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"]
    stored = [any(text.encode() in content for content in kept) for text in paragraphs()]
    assert stored == sorted(stored, reverse=True) and 0.5 < sum(stored) / len(stored) < 0.9


def test_memory_holds_a_part_of_a_file_however_slowly_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(streaming, "GROUP_CHARACTERS", 50_000)
    texts = [random.Random(number).randbytes(2500).hex() for number in range(6000)]  # too random to be compressed
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({"text": texts}), tmp_path / "shards" / "one.parquet", row_group_size=200)
    stream, characters, arrow = DocumentStream(str(tmp_path / "shards"), "text"), sum(map(len, texts)), 0
    del texts
    tracemalloc.start()
    for number, (_, group) in enumerate(stream.groups()):
        if number % 20 == 0:
            time.sleep(0.05)  # in which pyarrow reads ahead
        arrow = max(arrow, pa.total_allocated_bytes())
        characters -= sum(map(len, group))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert characters == 0 and most + arrow < 6000 * 5000 / 2


HUB_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
- config_name: sample-10BT
  data_files: {files}
---
# A data set
"""


def hub_folder(tmp_path, files):
    """A copy of a data set of the hub, with a configuration that names files."""
    folder = tmp_path / "fineweb"
    write_shards(folder / "data", ["not this one"], shards=1)
    write_shards(folder / "sample/10BT", paragraphs())
    (folder / "README.md").write_text(HUB_CARD.format(files=files))
    return folder


def test_a_folder_laid_out_as_on_the_hub_gives_the_configuration_asked_for(tmp_path):
    folder = hub_folder(tmp_path, "sample/10BT/*.parquet")
    assert documents(DocumentStream(f"hub:{folder}:sample-10BT", "text")) == paragraphs()
    assert documents(DocumentStream(str(folder), "text")) == ["not this one"]


@pytest.mark.parametrize("files", ["../elsewhere/*.parquet", "{tmp_path}/elsewhere/*.parquet", "sample/link.parquet"])
def test_files_outside_of_the_corpus_are_not_read(tmp_path, files):
    write_shards(tmp_path / "elsewhere", ["secret"], shards=1)
    folder = hub_folder(tmp_path, files.format(tmp_path=tmp_path))
    (folder / "sample/link.parquet").symlink_to(tmp_path / "elsewhere/train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="outside of it; only its own files are read"):
        DocumentStream(f"hub:{folder}:sample-10BT", "text")


def fake_hub(monkeypatch, folder, file):
    """Answer for the hub from a folder; return what was asked of it."""
    asked, load = [], datasets.load_dataset_builder

    def builder(name, config, revision):
        asked.append((name, config, revision))
        return SimpleNamespace(
            name="parquet",
            config=SimpleNamespace(data_files={"train": [file]}),
            hash="abc123",
            as_streaming_dataset=load(str(folder)).as_streaming_dataset,
        )

    monkeypatch.setattr(streaming, "load_dataset_builder", builder)
    return asked


def test_training_reads_the_commit_of_the_hub_that_was_prepared(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards", paragraphs())
    asked = fake_hub(monkeypatch, folder, "hf://datasets/someone/web@abc123/data/train-00000-of-00003.parquet")
    manifest = prepare_corpus(tmp_path / "corpus", "hub:someone/web:sample", sample_characters=4000)
    assert manifest["stream"] == {"corpus": "hub:someone/web:sample", "text_column": "text", "version": "abc123"}
    assert documents(DocumentStream(**manifest["stream"])) == paragraphs()
    assert asked == [("someone/web", "sample", None), ("someone/web", "sample", "abc123")]


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "hf://datasets/other/web@abc123/x.parquet", "https://example.org/x.parquet"]
)
def test_a_data_set_of_the_hub_cannot_name_files_elsewhere(tmp_path, monkeypatch, file):
    fake_hub(monkeypatch, write_shards(tmp_path / "shards", paragraphs()), file)
    with pytest.raises(UserError, match="outside of it"):
        DocumentStream("hub:someone/web", "text")


def test_a_corpus_that_changed_is_refused_and_a_copy_is_the_same(tmp_path):
    folder = write_shards(tmp_path / "shards", paragraphs())
    source = DocumentStream(str(folder), "text").source
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert DocumentStream(str(tmp_path / "copy"), "text").version == source["version"]
    shard = folder / "train-00001-of-00003.parquet"
    table = pq.read_table(shard).to_pylist()
    table[3]["text"] = table[3]["text"].swapcase()  # of the same size
    pq.write_table(pa.Table.from_pylist(table), shard, row_group_size=3)
    with pytest.raises(UserError, match="is not what it was when the data were prepared"):
        DocumentStream(**source)


def test_a_folder_is_found_again_from_another_place(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", paragraphs())
    monkeypatch.chdir(tmp_path)
    source = prepare_corpus(tmp_path / "corpus", "shards", sample_characters=4000)["stream"]
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    assert documents(DocumentStream(**source)) == paragraphs()


def test_a_stream_that_breaks_off_is_one_sentence(tmp_path):
    folder = write_shards(tmp_path / "shards", paragraphs())
    stream = DocumentStream(str(folder), "text")
    (folder / "train-00002-of-00003.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"shards could not be read on \(.+\); the same command tries again") as error:
        documents(stream)
    assert "\n" not in str(error.value)


def text_folder(folder):
    folder.mkdir()
    (folder / "a.txt").write_text("text")


def damaged_folder(folder):
    folder.mkdir()
    (folder / "a.parquet").write_bytes(b"PAR1 nothing")


def lines_folder(folder):
    write_shards(folder, [" = Title = \n", "", " Some sentence . \n"], shards=1)


@pytest.mark.parametrize(
    ("make", "flags", "said"),
    [
        (lambda folder: None, {"corpus": "auto"}, "corpus=auto cannot be streamed; give hub:NAME[:CONFIG] or a folder"),
        (lambda folder: None, {}, "shards cannot be streamed; give hub:NAME[:CONFIG] or a folder of parquet files"),
        (lambda folder: None, {"corpus": "hub:nobody/nothing"}, "corpus=hub:nobody/nothing cannot be streamed ("),
        (lambda folder: folder.mkdir(), {}, "shards cannot be streamed ("),
        (text_folder, {}, "of folders only parquet files are streamed"),
        (damaged_folder, {}, "shards cannot be streamed ("),
        (lines_folder, {}, "has a line a row, not a document; leave --streaming out"),
        (
            lambda folder: write_shards(folder, paragraphs()),
            {"text_column": "body"},
            "text_column=body is no column",
        ),
        (lambda folder: write_shards(folder, paragraphs()), {"sample_characters": 0}, "sample_characters=0 must be at"),
        (lambda folder: write_shards(folder, paragraphs()), {"sample_characters": 10}, "too few documents (1)"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_one_sentence(tmp_path, capsys, make, flags, said):
    make(tmp_path / "shards")
    argv = ["data", "download", "--streaming", "--data_dir", str(tmp_path / "data")]
    for name, value in {"corpus": tmp_path / "shards", **flags}.items():
        argv += [f"--{name}", str(value)]
    assert main(argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert said in line
    assert not (tmp_path / "data/corpus").exists()
