"""What is read depends on the documents alone, not on the container that they come in; all else is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, synthetic_articles, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.cli import main
from mla_experiments.data import DocumentStream, Reading, prepare_corpus, read_documents
from mla_experiments.data.formats import KINDS
from mla_experiments.errors import UserError
from mla_experiments.manifest import read_manifest

NASTY = [
    "two\nlines", "CR\r\nLF\r\n", "old\rMac", '"quoted", "twice"', "tab\tand, comma", "🙂 日本語 e\u0301", "\ufeffmark",
    "a\0zero", " leading and trailing ", "NA", "null", "None", "nan", "123", "007", "1e5", "2026-01-31", "true", "",
    " = Contents = ", "= Contents =", "= = Section = =", "[1, 2]", '{"text": "inner"}', "\\n", "\u2028\u0085\x1c", "''",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8)


def as_lines(texts):
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()


def as_array(texts):
    return json.dumps([{"text": text, "id": n} for n, text in enumerate(texts)], ensure_ascii=False, indent=1).encode()


def as_csv(texts, delimiter=","):
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return written.getvalue().encode()


def table_of(texts):
    return pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})


def as_parquet(texts):
    buffer = io.BytesIO()
    pq.write_table(table_of(texts), buffer)
    return buffer.getvalue()


def as_arrow(texts, new=pa.ipc.new_file):
    buffer = io.BytesIO()
    with new(buffer, table_of(texts).schema) as writer:
        writer.write_table(table_of(texts), max_chunksize=3)
    return buffer.getvalue()


def zstd(content):
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


CONTAINERS = {
    "x.jsonl": as_lines,
    "x.JSONL": as_lines,
    "x.ndjson": as_lines,
    "x.jsonlines": as_lines,
    "lines.json": as_lines,
    "x.json": as_array,
    "array.jsonl": as_array,
    "x.csv": as_csv,
    "x.Csv": as_csv,
    "x.tsv": lambda texts: as_csv(texts, "\t"),
    "x.parquet": as_parquet,
    "x.PQ": as_parquet,
    "x.arrow": as_arrow,
    "stream.arrow": lambda texts: as_arrow(texts, pa.ipc.new_stream),
    "x.feather": as_arrow,
    "x.jsonl.gz": lambda texts: gzip.compress(as_lines(texts)),
    "x.jsonl.zst": lambda texts: zstd(as_lines(texts)),
    "x.jsonl.xz": lambda texts: lzma.compress(as_lines(texts)),
    "x.jsonl.bz2": lambda texts: bz2.compress(as_lines(texts)),
    "x.csv.GZ": lambda texts: gzip.compress(as_csv(texts)),
    "two.jsonl.gz": lambda texts: gzip.compress(as_lines(texts[:2])) + gzip.compress(as_lines(texts[2:])),
    "two.jsonl.zst": lambda texts: zstd(as_lines(texts[:2])) + zstd(as_lines(texts[2:])),
    "zipped-by-content.jsonl": lambda texts: gzip.compress(as_lines(texts)),
    "not-zipped-by-content.jsonl.gz": as_lines,
    "parquet-by-content.csv": as_parquet,
    "bom.jsonl": lambda texts: b"\xef\xbb\xbf" + as_lines(texts),
    "utf16.csv": lambda texts: as_csv(texts).decode().encode("utf-16"),
}


@settings(max_examples=25)
@given(texts=TEXTS)
def test_the_same_documents_come_out_of_every_container(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("containers")
    expected = [text for text in texts if text.strip()]
    for name, write in CONTAINERS.items():
        path = folder / name
        path.write_bytes(write(texts))
        reading = Reading(name)
        if expected:
            assert list(read_documents(path, reading=reading)) == expected, name
            assert sum(reading.left_out.values()) == len(texts) - len(expected)
        else:
            with pytest.raises(UserError, match="holds no text"):
                list(read_documents(path))


def test_the_same_documents_have_one_hash(tmp_path):
    texts = [f"document {n}\r\n, {text}" for n, text in enumerate(NASTY)]
    hashes = set()
    for name in CONTAINERS:
        (tmp_path / name).write_bytes(CONTAINERS[name](texts))
        hashes.add(prepare_corpus(tmp_path / "corpus", str(tmp_path / name))["hash"])
    assert len(hashes) == 1


def test_a_row_longer_than_any_buffer_is_read(tmp_path):
    long = 'long "text" , ' * 200_000
    for name in ("x.jsonl", "x.json", "x.csv", "x.tsv"):
        (tmp_path / name).write_bytes(CONTAINERS[name]([long, "short"]))
        assert list(read_documents(tmp_path / name)) == [long, "short"], name


def test_one_object_over_many_lines_is_a_row(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"text": "a text", "id": [1, 2]}, indent=2))
    assert list(read_documents(tmp_path / "x.json")) == ["a text"]


@pytest.mark.parametrize("ending", [".txt", ".TXT", ".text", ".md", ".markdown", ".Markdown"])
def test_a_text_file_is_its_text_line_ends_and_all_but_the_mark(tmp_path, ending):
    text = "# Heading\r\n\r\n= Contents =\nold\rMac\n🙂"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / f"x{ending}").write_bytes(text.encode(encoding))
        assert list(read_documents(tmp_path / f"x{ending}")) == [text]
    (tmp_path / f"x{ending}.gz").write_bytes(gzip.compress(text.encode()))
    assert list(read_documents(tmp_path / f"x{ending}.gz")) == [text]


@pytest.mark.parametrize("name", ["x.docx", "x.pdf", "x.zip", "x.yaml", "x", "x.gz", "x.txt.zip", "x.jsonl~", ".txt"])
def test_any_other_name_is_refused_with_those_that_are_read(tmp_path, name):
    (tmp_path / name).write_text("words")
    with pytest.raises(UserError) as error:
        list(read_documents(tmp_path / name))
    assert name in str(error.value) and all(ending in str(error.value) for ending in KINDS)


def test_every_ending_is_documented():
    page = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    absent = [ending for ending in KINDS if f"`{ending}`" not in page]
    assert not absent, f"the table of docs/data.md lacks {absent}"


def refusal(tmp_path, name, content, column="text"):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_documents(path, column))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": "\\ud800 b"}\n', "line 2 holds \\ud800, half of a surrogate pair"),
        ("x.json", b'[{"text": "a"}, {"text": "b\\udc00"}]', "row 2 holds \\udc00, half of a surrogate pair, at char"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "(byte 0xff) at offset 24, line 2"),
        ("x.csv", b"text\nb\ncaf\xe9,\n", "(byte 0xe9) at offset 10, line 3"),
        ("x.txt", b"\xff\xfea\0\x00", "is not UTF-16 text"),
        ("x.txt", b"a" * 3_000_000 + b"\n\x80", "(byte 0x80) at offset 3000001, line 2"),
        ("x.txt", "ends within 🙂".encode()[:-1], "at offset 12, line 1"),
        ("x.txt", "no mark".encode("utf-16-le"), "is binary"),
        ("x.jsonl", b'{"text": "a"}\n["text", "b"]\n', 'line 2 is ["text", "b"], not an object'),
        ("x.json", b'["a", "b"]', 'row 1 is "a", not an object'),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2 names a field twice (text)"),
        ("x.jsonl", b'{"text": "a"}\n{"text": ["b"]}\n', "holds no text in"),
        ("x.jsonl", b'{"text": "a"}\n{"text": 3.0}\n', "line 2, but 3.0 (float)"),
        ("x.jsonl", b'{"text": ' + b"[" * 100_000, "is not JSON"),
        ("x.json", b'[{"text": "a"}', "is not JSON"),
        ("x.jsonl", b'{"text": null}\n' * 3, "holds no text (3 documents without a text (null))"),
        ("x.jsonl", b'{"a": 1}\n{"b": "x"}\n', "holds no text in"),
        ("x.jsonl", b'{"a": 1}\n{"b": "x"}\n', "it has a, b"),
        ("x.csv", b"id,body\n1,x\n", "it has id, body"),
        ("x.csv", b"text,text\n1,x\n", "has the column text more than once"),
        ("x.csv", b"id,text\n1,x\n2,y,z\n", "line 3 ends a row of 3 fields, but the first line names 2"),
        ("x.csv", b"id,text\n1,x\n2\n", "line 3 ends a row of 1 fields"),
        ("x.csv", b'id,text\n1,"x\n2,y\n', "is not CSV (unexpected end of data)"),
        ("x.tsv", b'id\ttext\n1\t"Hello" she said\n', "line 2 is not TSV"),
        ("x.csv", b"text\n", "holds no text"),
        ("x.jsonl.gz", gzip.compress(as_lines(["a"] * 99))[:-12], "cannot be decompressed as gzip"),
        ("x.jsonl.zst", zstd(as_lines(NASTY))[:-12], "cannot be decompressed as zstd"),
        ("x.jsonl.xz", lzma.compress(as_lines(NASTY))[:-12], "cannot be decompressed as xz"),
        ("x.jsonl.bz2", bz2.compress(as_lines(NASTY))[:-12], "cannot be decompressed as bzip2"),
        ("x.txt.bz2", bz2.compress(b"a") + b"XZh" + bz2.compress(b"b")[3:], "cannot be decompressed as bzip2"),
        ("x.txt.xz", lzma.compress(b"a") + b"\0\0\0\0not a stream", "cannot be decompressed as xz"),
        ("x.txt.gz", gzip.compress(gzip.compress(b"a")), "is gzip within gzip; decompress it once"),
        ("x.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "line 1 holds a carriage return without a line feed; convert"),
        ("x.csv", b"id,text\r1,a\r2,b\r", "holds a carriage return without a line feed; convert its line ends"),
        ("x.csv", b"id;text\n1;a\n", "parts its fields with ';', not with ','"),
        ("x.csv", b"id,Text\n1,a\n", "it has id, Text: --text-column 'Text', or"),
        ("x.jsonl", b'{"a": 1}\n' * 300 + b'{"text": "b"}\n', "holds no text in the first 300 rows of"),
        ("x.feather", b"FEA1" + b"\0" * 40 + b"FEA1", "it is Feather V1"),
        ("x.tar.gz", b"", "ends in .tar within .gz, which is not one of"),
        ("x.parquet.gz", gzip.compress(as_parquet(["a"])), "is parquet within gzip; decompress it first"),
        ("x.parquet", as_lines(["a"]), "is not a readable parquet file"),
        ("x.arrow", as_lines(["a"]), "is not a readable Arrow file"),
        ("x.parquet", b"", "is not a readable parquet file"),
    ],
    ids=lambda value: "content" if isinstance(value, bytes) else None,  # gzip's has the time in it: no name of a test
)  # fmt: skip
def test_what_is_no_text_names_the_file_and_the_place(tmp_path, name, content, said):
    assert said in refusal(tmp_path, name, content)


def parquet(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet", row_group_size=2)
    return (tmp_path / "x.parquet").read_bytes()


def not_utf8(*contents):
    """A column of text that holds any bytes."""
    return pa.array(contents, pa.binary()).view(pa.string())


def test_a_column_that_is_no_text_is_refused_by_its_type(tmp_path):
    for column, named in (([1, 2], "int64"), ([b"x"], "binary"), ([["x"]], "list"), ([{"a": "x"}], "struct")):
        assert f"is of type {named}" in refusal(tmp_path, "x.parquet", parquet(tmp_path, column))
    content = parquet(tmp_path, pa.array(["a", "b", "a"]).dictionary_encode())
    (tmp_path / "x.parquet").write_bytes(content)
    assert list(read_documents(tmp_path / "x.parquet")) == ["a", "b", "a"]


def test_parquet_that_is_not_utf8_names_the_row(tmp_path):
    content = parquet(tmp_path, not_utf8(b"a", b"b", b"c\xff"))
    assert "row 3 is not UTF-8 text (byte 0xff at offset 1" in refusal(tmp_path, "x.parquet", content)


def test_nulls_and_empty_documents_are_counted_and_said_in_one_sentence(tmp_path, capsys):
    rows = ['{"text": null}', '{"text": " \\n"}', '{"id": 1}', *(f'{{"text": "document {n}"}}' for n in range(9))]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    manifest = prepare_corpus(tmp_path / "corpus", str(tmp_path / "x.jsonl"))
    said = capsys.readouterr().out
    assert "9 documents of JSON, one a row." in said
    assert "Left out: 2 documents without a text (null), 1 document without a word." in said
    assert manifest["reading"]["left_out"] == {"without a text (null)": 2, "without a word": 1}
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"holds no text \(3 documents without"):
        list(read_documents(tmp_path / "x.parquet"))


@pytest.mark.parametrize("name", ["x.txt", "x.md"])
def test_a_text_column_without_effect_is_refused(tmp_path, name):
    (tmp_path / name).write_text("words")
    assert "text_column=body is for tables" in refusal(tmp_path, name, b"words", "body")
    for corpus in ("auto", "wiki-sample", "wikitext-103"):
        with pytest.raises(UserError, match=f"text_column=body is for your own tables, and corpus={corpus}"):
            prepare_corpus(tmp_path / "corpus", corpus, "body")


def mixed_folder(folder):
    folder.mkdir()
    for number, (name, write) in enumerate(CONTAINERS.items()):
        (folder / f"{number:02}-{name}").write_bytes(write([f"{name} {row}" for row in range(3)]))
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/README.md").write_text("deep")
    (folder / "z.TXT").write_text("last")
    return [f"{name} {row}" for name in CONTAINERS for row in range(3)] + ["deep", "last"]


def test_a_mixed_folder_gives_all_its_documents_in_the_order_of_names(tmp_path, monkeypatch):
    expected = mixed_folder(tmp_path / "mixed")
    assert list(read_documents(tmp_path / "mixed")) == expected
    walk = os.walk

    def backwards(*arguments, **options):
        for root, folders, names in walk(*arguments, **options):
            folders.sort(reverse=True)
            yield root, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert list(read_documents(tmp_path / "mixed")) == expected


def test_a_folder_says_what_it_did_not_read_and_why(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(f"text {number}")
        (folder / f"{number}.docx").write_text("no")
    for name in (".hidden.txt", "README.md", "LICENSE", "state.json", "script.py"):
        (folder / name).write_text("no")
    (folder / ".git").mkdir()
    (folder / ".git/config.txt").write_text("no")
    (folder / "again.txt").symlink_to("0.txt")
    (folder / "loop").symlink_to(".")
    (folder / "1.txt.gz").write_bytes(gzip.compress(b"text 1"))  # what `gunzip -k` leaves
    (folder / "2.txt.gz").write_bytes(gzip.compress(b"another text"))
    manifest = prepare_corpus(tmp_path / "corpus", str(folder))
    said = capsys.readouterr().out
    assert f"Read {folder}: 6 documents of 6 text files, one a file." in said
    for part in (
        "5 .docx (0.docx, 1.docx, 2.docx, ...)", "2 hidden (.git, .hidden.txt)", "1 .py (script.py)",
        "2 about the folder (LICENSE, README.md)", "1 links to files that are read (again.txt)",
        "1 links to folders (loop)", "1 compressed copies (1.txt.gz)", "1 records of datasets (state.json)",
    ):  # fmt: skip
        assert part in said, part
    assert manifest["reading"]["skipped"][".py"] == ["script.py"]
    for path in folder.iterdir():
        if path.suffix in (".txt", ".gz"):
            path.unlink()
    with pytest.raises(UserError, match=r"is a folder without any .* file; it holds 5 \.docx"):
        list(read_documents(folder))


def test_all_streams_of_a_compressed_file_are_read(tmp_path):
    """As pbzip2 and `cat` write them; xz may fill up with zeros between."""
    for ending, compress in ((".bz2", bz2.compress), (".xz", lzma.compress), (".gz", gzip.compress)):
        between = b"\0" * 8 if ending == ".xz" else b""
        content = between.join(compress(part) for part in (b"one " * 500_000, b"", b"two")) + between
        (tmp_path / f"x.txt{ending}").write_bytes(content)
        assert list(read_documents(tmp_path / f"x.txt{ending}")) == ["one " * 500_000 + "two"], ending


def test_a_table_begins_after_blank_lines_and_one_without_rows_is_said(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.csv").write_text("\n\r\ntext\nof a\n")
    for name, content in (("b.csv", "text\n"), ("c.json", "[]"), ("d.jsonl", "\n"), ("e.txt", "of e")):
        (folder / name).write_text(content)
    reading = Reading("folder")
    assert list(read_documents(folder, reading=reading)) == ["of a", "of e"]
    assert reading.skipped == {"without a row": ["b.csv", "c.json", "d.jsonl"]}


def test_what_we_have_made_is_no_text_of_the_folder_that_it_lies_in(tmp_path, monkeypatch, capsys):
    """The first that many would type in a folder of notes: `--corpus .`, and then once more."""
    monkeypatch.chdir(tmp_path)
    for number, article in enumerate(synthetic_articles(12)):
        Path(f"{number}.txt").write_text(article)
    assert main(["data", "--corpus", ".", "--data_dir", "out", "--vocab_size", "300", "--sequence_length", "32"]) == 0
    first = read_manifest(Path("out/corpus"), "")["hash"]
    Path("weights/mha").mkdir(parents=True)
    Path("weights/mha/run.json").write_text("{}")
    Path("weights/mha/metrics.jsonl").write_text("{}")
    Path("0.txt").touch()  # read again
    capsys.readouterr()
    assert main(["data", "--corpus", ".", "--data_dir", "out", "--vocab_size", "300", "--sequence_length", "32"]) == 0
    assert "folders of mla-experiments (" in capsys.readouterr().out
    assert read_manifest(Path("out/corpus"), "")["hash"] == first


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, capsys, empty):
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("words")
    for line in (["data", "--corpus", empty], ["data", "--data_dir", empty], ["plan", empty], ["import", empty, "x"]):
        assert main(line) == 2
        assert "is empty; give a value" in capsys.readouterr().err, line
    with pytest.raises(UserError, match="names nothing"):
        prepare_corpus(tmp_path / "corpus", empty)


def test_names_cannot_write_to_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[31mred\nline"
    Path(name).mkdir()
    for number, article in enumerate(synthetic_articles(6)):
        Path(name, f"{number}\x1b.txt").write_text(article)
    Path(name, "x\x1b.docx").write_text("no")
    assert (
        main(["data", "--corpus", name, "--data_dir", "out\x1b", "--vocab_size", "300", "--sequence_length", "32"]) == 0
    )
    said = capsys.readouterr()
    assert "\x1b[31m" not in said.out + said.err and "a\\x1b[31mred\\nline" in said.out


def test_words_stay_whole_in_a_line_without_an_end(tmp_path):
    text = " ".join(f"word{number}" for number in range(400_000))
    (tmp_path / "x.txt").write_text(text)
    passages = list(read_documents(tmp_path / "x.txt", passages=True))
    assert "".join(passages) == text and max(map(len, passages)) < 8_100 and len(passages) > 400
    assert {word for passage in passages for word in passage.split()} == set(text.split())
    (tmp_path / "x.txt").write_text("語" * 3_000_000)  # no words
    passages = list(read_documents(tmp_path / "x.txt", passages=True))
    assert "".join(passages) == "語" * 3_000_000 and len(passages) > 1


def test_names_that_are_no_text_are_escaped(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (b"a\xe9.txt", b"b\xe9.docx", b"c\xe9.jsonl", b"d.txt"):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(gzip.compress(b'{"text": "of ' + name[:1] + b'"}'))
    prepare_corpus(tmp_path / "corpus", str(folder))
    assert "b\\udce9.docx" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"corpus holds .udce9"):
        prepare_corpus(tmp_path / "corpus", os.fsdecode(os.fsencode(folder) + b"/a\xe9.txt"))


def wikitext_rows(articles):
    """Rows as the hub has them: a line each, blank ones empty."""
    return [line if line.strip() else "" for text in articles for line in text.splitlines(keepends=True)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.arrow", "x.jsonl.gz"])
def test_a_row_that_looks_like_a_heading_parts_and_joins_no_documents(tmp_path, name):
    for heading in ("= Contents =", " = Contents = ", " = Contents = \n"):
        texts = [*(f"A document of {n} . It ends ." for n in range(30)), heading, "", *map(str, range(30))]
        (tmp_path / name).write_bytes(CONTAINERS[name](texts))
        assert list(read_documents(tmp_path / name)) == [text for text in texts if text]


def test_headings_in_plain_text_do_not_part_it(tmp_path):
    text = "= Contents =\n\nA sentence of AsciiDoc.\n\n = Title = \n \n It ends . \n" * 40
    (tmp_path / "x.txt").write_text(text)
    assert list(read_documents(tmp_path / "x.txt")) == [text]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
@pytest.mark.parametrize("change", [str, lambda row: row.removesuffix("\n")])
def test_a_table_of_wikitext_s_lines_gives_its_articles_and_says_so(tmp_path, name, change):
    rows = wikitext_rows(synthetic_articles(30))
    (tmp_path / name).write_bytes(CONTAINERS[name](list(map(change, rows))))
    reading = Reading(name)
    documents = list(read_documents(tmp_path / name, reading=reading))
    assert documents == ["".join(wikitext_rows([article])) for article in synthetic_articles(30)]
    assert "30 documents of" in reading.sentences()[0] and "articles of WikiText" in reading.sentences()[0]
    (tmp_path / name).write_bytes(CONTAINERS[name]([*map(change, rows * 2), *["no line of WikiText's"] * 40]))
    assert len(list(read_documents(tmp_path / name))) == 2 * len([row for row in rows if row]) + 40


def test_texts_that_are_named_like_shards_are_all_read(tmp_path):
    for number, text in enumerate(("first", "second")):
        (tmp_path / f"notes-0000{number}-of-00002.txt").write_text(text)
    assert list(read_documents(tmp_path)) == ["first", "second"]


def test_an_article_goes_on_from_one_shard_to_the_next(tmp_path):
    rows = wikitext_rows(synthetic_articles(30))
    whole = ["".join(wikitext_rows([article])) for article in synthetic_articles(30)]
    write_shards(tmp_path / "shards", rows, shards=4)
    assert list(read_documents(tmp_path / "shards")) == whole


def test_wikitext_with_other_line_ends_and_a_mark_is_wikitext(tmp_path):
    articles = [article.replace("\n", "\r\n") for article in synthetic_articles(5)]
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + "".join(articles).encode())
    assert list(read_documents(tmp_path / "x.txt")) == articles


def test_what_an_earlier_reader_prepared_is_usable_and_a_local_file_is_read_again(tmp_path, articles, monkeypatch):
    (tmp_path / "wiki.txt").write_text("".join(articles))
    monkeypatch.setattr("mla_experiments.data.corpora.READERS", 1)
    prepare_corpus(tmp_path / "corpus", str(tmp_path / "wiki.txt"))
    earlier = read_manifest(tmp_path / "corpus", "")
    monkeypatch.undo()
    again = prepare_corpus(tmp_path / "corpus", str(tmp_path / "wiki.txt"))
    assert again["hash"] == earlier["hash"] and again["request"] != earlier["request"]


def test_a_folder_named_as_a_data_set_gives_the_texts_that_stand_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    texts = ["NA", "null", *(f"document {n}" for n in range(9)), "= Contents =", "nan"]
    for name, folder in (("x.csv", "csv"), ("x.parquet", "parquet")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(CONTAINERS[name](texts))
    hashes = {
        prepare_corpus(tmp_path / "corpus", name)["hash"]
        for name in (f"hub:{tmp_path}/csv", f"hub:{tmp_path}/parquet", f"{tmp_path}/csv")
    }
    assert len(hashes) == 1
    (tmp_path / "csv/x.csv").write_bytes(as_csv(texts[:-1]))
    assert prepare_corpus(tmp_path / "corpus", f"hub:{tmp_path}/csv")["hash"] not in hashes
    with pytest.raises(UserError, match=r"text_column=body is no column of hub:.*; it has id, text"):
        prepare_corpus(tmp_path / "corpus", f"hub:{tmp_path}/csv", "body")


def streamed(folder, **options):
    stream = DocumentStream(str(folder), "text", **options)
    return [text for _, texts in stream.groups() for text in texts]


def test_a_stream_follows_the_same_rules(tmp_path, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a", None, "", "= Contents ="]}), folder / "1.PARQUET")
    pq.write_table(pa.table({"text": ["b", None]}), folder / "2.parquet")
    pq.write_table(pa.table({"text": [f"document {n}" for n in range(9)]}), folder / "3.pq")
    (folder / "notes.docx").write_text("no")
    said = []
    texts = streamed(folder, say=said.append)
    assert texts == ["a", "= Contents =", "b", *(f"document {n}" for n in range(9))]
    assert len(said) == 1 and "has rows without a text (null), which are left out" in said[0]
    prepare_corpus(tmp_path / "corpus", str(folder), sample_characters=1000)
    out = capsys.readouterr().out
    assert "Left out: 2 documents without a text (null), 1 document without a word." in out
    assert "1 .docx (notes.docx)" in out
    pq.write_table(pa.table({"text": not_utf8(b"a", b"b\xff")}), folder / "3.pq")
    with pytest.raises(UserError, match=r"3\.pq row 2 is not UTF-8 text \(byte 0xff"):
        streamed(folder)


def test_a_stream_of_no_text_is_refused_by_its_type(tmp_path):
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "shards/x.parquet")
    with pytest.raises(UserError, match=r"text_column=text of .*shards is of type int64"):
        streamed(tmp_path / "shards")


def test_corpora_that_are_neither_file_nor_folder_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"pipe\.txt is no file or folder"):
        list(read_documents(Path(tmp_path / "pipe.txt")))
