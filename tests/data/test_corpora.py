"""Every kind of source gives its documents, splits are disjoint, and bad input gets one sentence."""

import json
import time
from threading import Thread

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import synthetic_articles

from mla_experiments.data import load_corpus, prepare_corpus, read_documents, sources
from mla_experiments.errors import UserError
from mla_experiments.manifest import locked, read_manifest, scratch_for

TEXTS = ["Erster Text.\nZwei Zeilen.", "日本語のテキスト 🙂", "third\r\ntext\n"]


def write(path, texts, column="text"):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({column: texts}), path)
    else:
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_row_is_a_document(tmp_path, suffix):
    assert list(read_documents(write(tmp_path / f"x{suffix}", TEXTS))) == TEXTS
    other = write(tmp_path / f"y{suffix}", TEXTS, column="content")
    assert list(read_documents(other, "content")) == TEXTS


def test_a_file_in_a_folder_is_a_document(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    assert list(read_documents(tmp_path)) == TEXTS


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_wikitext_lines_become_articles_again(tmp_path, articles, suffix):
    path = tmp_path / f"wiki{suffix}"
    if suffix == ".txt":
        path.write_text("".join(articles), encoding="utf-8")
        assert list(read_documents(path)) == articles
    else:  # the hub's rows: a line each, blank ones empty
        rows = [line if line.strip() else "" for article in articles for line in article.splitlines(keepends=True)]
        documents = list(read_documents(write(path, rows)))
        assert [d.replace(" \n", "\n").split() for d in documents] == [a.split() for a in articles]


def test_a_plain_text_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path):
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 150 for n in range(60)) + "\r\nlast"
    path = tmp_path / "book.txt"
    path.write_bytes(text.encode())
    passages = list(read_documents(path, passages=True))
    assert "".join(passages) == text and len(passages) > 5
    assert all(passage.endswith("\n\n") or passage == passages[-1] for passage in passages)
    assert list(read_documents(path)) == [text]


def test_a_text_with_a_paragraph_a_line_is_cut_at_the_ends_of_lines(tmp_path):
    text = "".join(f"Paragraph {n}. " + "word " * 150 + "\n" for n in range(100))
    (tmp_path / "book.txt").write_text(text)
    passages = list(read_documents(tmp_path / "book.txt", passages=True))
    assert "".join(passages) == text and all(passage.endswith("\n") for passage in passages)
    assert len(passages) == 10 and max(map(len, passages)) < 9_000


def test_splits_are_disjoint_complete_and_independent_of_order(tmp_path):
    articles = synthetic_articles(30) + synthetic_articles(3)[:1] * 5  # one text five times: never in two splits
    splits = []
    for order in (articles, articles[::-1]):
        path = write(tmp_path / "texts.parquet", order)
        prepare_corpus(tmp_path / "corpus", str(path))
        corpus = load_corpus(tmp_path / "corpus")
        splits.append({name: sorted(split["text"]) for name, split in corpus.items()})
    assert splits[0] == splits[1]
    assert sorted(text for split in splits[0].values() for text in split) == sorted(articles)
    train, validation, test = (set(splits[0][name]) for name in ("train", "validation", "test"))
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test


def test_counts_are_those_of_the_original_text(tmp_path, articles):
    path = tmp_path / "wiki.txt"
    path.write_text("".join(articles) + " Ünïcödé 語 . \n", encoding="utf-8")
    splits = prepare_corpus(tmp_path / "corpus", str(path))["splits"].values()
    original = path.read_bytes()
    assert sum(split["bytes"] for split in splits) == len(original)
    assert sum(split["words"] for split in splits) == len(original.decode().split())
    assert sum(split["characters"] for split in splits) == len(original.decode())


def test_a_prepared_corpus_is_not_made_again_but_a_changed_file_is(tmp_path, articles, capsys):
    path = tmp_path / "wiki.txt"
    path.write_text("".join(articles), encoding="utf-8")
    first = prepare_corpus(tmp_path / "corpus", str(path))
    assert prepare_corpus(tmp_path / "corpus", str(path)) == first
    assert "nothing to do" in capsys.readouterr().out
    path.write_text("".join(articles[:8]), encoding="utf-8")
    assert prepare_corpus(tmp_path / "corpus", str(path))["hash"] != first["hash"]


def hub_folder(tmp_path, articles):
    """A local data set in the form in which the hub serves WikiText: a line a row, three splits."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for split, part in {"train": articles[:8], "validation": articles[8:10], "test": articles[10:]}.items():
        rows = ["", *(line if line.strip() else "" for text in part for line in text.splitlines(keepends=True))]
        write(folder / f"{split}.parquet", rows)
    return folder


def test_the_hub_s_wikitext_keeps_its_own_splits(tmp_path, articles, monkeypatch):
    folder, load, asked = hub_folder(tmp_path, articles), datasets.load_dataset, []
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}

    def from_disk(name, config):
        asked.append((name, config))
        return load("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", from_disk)
    prepare_corpus(tmp_path / "corpus", "wikitext-2")
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    corpus = load_corpus(tmp_path / "corpus")
    assert {name: len(split) for name, split in corpus.items()} == {"train": 8, "validation": 2, "test": 2}
    assert [text.split() for text in corpus["test"]["text"]] == [text.split() for text in articles[10:]]


def test_auto_takes_the_sample_where_the_hub_is_out_of_reach_and_says_so(tmp_path, capsys, articles, monkeypatch):
    monkeypatch.setattr("mla_experiments.data.sources.wiki_sample", lambda: iter(articles))
    manifest = prepare_corpus(tmp_path / "corpus", "auto")
    assert manifest["corpus"] == "wiki-sample"
    assert "WARNING" in (said := capsys.readouterr().out) and "NOT on WikiText" in said


def test_a_corpus_asked_for_by_name_is_never_replaced(tmp_path):
    with pytest.raises(UserError, match=r"wikitext-103-raw-v1 cannot be had .* choose --corpus wiki-sample"):
        prepare_corpus(tmp_path / "corpus", "wikitext-103")
    with pytest.raises(UserError, match="hub:nobody/nothing cannot be had"):
        prepare_corpus(tmp_path / "corpus", "hub:nobody/nothing")
    assert not (tmp_path / "corpus").exists()


def test_an_unanswering_hub_is_noticed_in_time(monkeypatch):
    import time

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: time.sleep(5))
    begun = time.monotonic()
    assert not sources.hub_is_reachable(patience=0.2)
    assert time.monotonic() - begun < 2
    assert sources.HUB_PATIENCE < 20


def test_the_sample_reads_as_prose():
    pytest.importorskip("gensim")
    articles = list(sources.wiki_sample())
    text = "".join(articles)
    assert len(articles) == 107 and len(text) > 2_400_000
    for leftover in ("{|", "|}", "||", "[[", "]]", "{{", "}}", "<ref", "''", "&nbsp;", "http://", "thumb|"):
        assert leftover not in text, leftover
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    headings = [line.startswith("= ") for line in lines]
    endings = sum(line.endswith((".", "!", "?", ":", '"', ")")) for line in lines if not line.startswith("= "))
    assert endings == headings.count(False)
    sections = [line.startswith("= = ") for line in lines]
    assert not sections[-1], "a heading without prose"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no text"),
        (b" \n\n ", "holds no text"),
        (b"text\0more", "is binary"),
        (b"caf\xe9 au lait", "is not UTF-8 text (byte 0xe9)"),
        (b"one short document", "too few documents (1)"),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(tmp_path, content, said):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        prepare_corpus(tmp_path / "corpus", str(path))
    assert said in str(error.value) and str(path) in str(error.value)
    assert [left for left in tmp_path.iterdir() if left.name != ".corpus.lock"] == [path]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        ("x.jsonl", b'{"body": "a"}\n', "text_column=text holds no text in"),
        ("x.jsonl", b'{"text": 3}\n', "text_column=text holds no text in"),
        ("x.parquet", b"PAR1 nothing", "is not a readable parquet file"),
    ],
)
def test_a_table_that_is_no_corpus_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        prepare_corpus(tmp_path / "corpus", str(tmp_path / name))


def test_an_absent_corpus_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"corpus=nowhere\.txt is no file or folder"):
        prepare_corpus(tmp_path / "corpus", "nowhere.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder without any"):
        prepare_corpus(tmp_path / "corpus", str(tmp_path / "empty"))


def test_a_failed_preparation_leaves_the_corpus_before_it(tmp_path, articles):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("".join(articles), encoding="utf-8")
    bad.write_bytes(b"".join(text.encode() for text in articles) + b"\xff")
    prepare_corpus(tmp_path / "corpus", str(good))
    with pytest.raises(UserError, match="UTF-8"):
        prepare_corpus(tmp_path / "corpus", str(bad))
    assert read_manifest(tmp_path / "corpus", "")["corpus"] == str(good)
    assert len(load_corpus(tmp_path / "corpus")["train"]) > 0


def test_two_that_prepare_one_folder_take_turns(tmp_path, articles, capsys):
    folder, said = tmp_path / "corpus", ""
    (tmp_path / "articles.txt").write_text("".join(articles), encoding="utf-8")
    other = Thread(target=prepare_corpus, args=(folder, str(tmp_path / "articles.txt")))
    with locked(folder):
        other.start()
        while "Waiting for another process that works in" not in said:
            assert other.is_alive()
            said += capsys.readouterr().out
            time.sleep(0.01)
        assert not folder.exists() and not scratch_for(folder).exists()
    other.join(60)
    assert len(load_corpus(folder)["train"])
