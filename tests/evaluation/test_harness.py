"""lm-evaluation-harness, on the same documents, gives our perplexities: this says what they mean."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import synthetic_articles, wikitext_file
from transformers import AutoTokenizer, set_seed

from mla_experiments.cli import main
from mla_experiments.data import read_documents
from mla_experiments.evaluation.harness import name_in
from mla_experiments.evaluation.perplexity import score_documents
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model

CONTEXT = 32  # short, so that most documents need many windows


@pytest.fixture(scope="module", autouse=True)
def _read_once():
    """Read the harness's own tasks, which are thousands of files, once for all tests; what it finds stays the same."""
    try:
        from lm_eval.tasks._index import TaskIndex
        from lm_eval.tasks._index import __file__ as index_file
    except ImportError:  # another version, whose tests take longer
        yield
        return
    build, own = TaskIndex.build, Path(index_file).parent
    theirs = functools.cache(lambda: build([own]))
    with pytest.MonkeyPatch.context() as patch:
        ours = lambda paths: build([path for path in paths if path != own])  # noqa: E731
        patch.setattr(TaskIndex, "build", lambda _, paths: (theirs() if own in paths else {}) | ours(paths))
        yield


@pytest.fixture(scope="module")
def run(_prepared, tmp_path_factory):
    """The folder of a small untrained model."""
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = AutoTokenizer.from_pretrained(_prepared / "tokenizer")
    set_seed(0)
    end = tokenizer.eos_token_id
    config = DecoderConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=CONTEXT,
        initializer_range=0.2, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    DecoderForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ours(run, texts):
    score = score_documents(load_model(run), AutoTokenizer.from_pretrained(run), texts)
    return {
        "word_perplexity": score.perplexity_per_word,
        "byte_perplexity": 2**score.bits_per_byte,
        "bits_per_byte": score.bits_per_byte,
    }


def theirs(run, task, tmp_path, *more):
    assert main(["eval", str(run), "--tasks", str(task), "--output_dir", str(tmp_path), *more]) == 0
    rows = json.loads((tmp_path / "harness.json").read_text())["results"]
    return {row["metric"]: row["value"] for row in rows}


def assert_equal_to_four_digits(found, expected):
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=5e-5), name


def test_a_task_of_the_harness_over_a_local_file_agrees_with_us(run, tmp_path):
    texts = [text.strip() for text in synthetic_articles(5, seed=7)] + ["short", "two words"]
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps({"page": text}) + "\n" for text in texts))
    task = tmp_path / "local.yaml"
    task.write_text(
        yaml.safe_dump(
            {
                "task": "local_wikitext", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "",
                "doc_to_target": "{{page}}",
                "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
            }
        )
    )  # fmt: skip
    assert_equal_to_four_digits(theirs(run, task, tmp_path), ours(run, texts))


def test_real_wikitext_agrees_too(run, tmp_path):
    lines = wikitext_file("wikitext-2.valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path / "wikitext.txt"
    path.write_text("".join(lines[:60]), encoding="utf-8")
    found = theirs(run, "documents", tmp_path, "--corpus", str(path))
    assert_equal_to_four_digits(found, ours(run, read_documents(path, "text")))


def test_documents_of_a_wikitext_file_agree_with_us(run, tmp_path):
    path = tmp_path / "held-out.txt"
    path.write_text("".join(synthetic_articles(6, seed=9)))
    found = theirs(run, "documents", tmp_path, "--corpus", str(path))
    assert_equal_to_four_digits(found, ours(run, read_documents(path, "text")))


def of_so_many_tokens(tokenizer, count):
    """A text that the tokenizer turns into exactly so many tokens."""
    tokens = tokenizer("".join(synthetic_articles(2, seed=3)), add_special_tokens=False)["input_ids"]
    return next(
        text
        for first in range(len(tokens) - count)
        if len(tokenizer(text := tokenizer.decode(tokens[first : first + count]))["input_ids"]) == count
    )


def test_odd_documents_agree_too(run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(run)
    lengths = (CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 2 * CONTEXT + 1)
    texts = [
        "", " ", "\n\n", "x", "Zürich — 東京 🎉 naïve\u200b", "a\u00a0b\u2003c", "<|endoftext|> in words",
        *(of_so_many_tokens(tokenizer, length) for length in lengths),
    ]  # fmt: skip
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert_equal_to_four_digits(theirs(run, "documents", tmp_path, "--corpus", str(path)), ours(run, texts))


def test_a_document_whose_windows_repeat_each_other_agrees_too(run, tmp_path):
    path = tmp_path / "again.jsonl"
    path.write_text(json.dumps({"text": "the tree " * 50}) + "\n")
    found = theirs(run, "documents", tmp_path, "--corpus", str(path))
    assert_equal_to_four_digits(found, ours(run, read_documents(path, "text")))


def test_a_tokenizer_that_begins_texts_with_a_token_of_its_own_agrees_too(run, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run, folder)
    tokenizer = AutoTokenizer.from_pretrained(run, bos_token="~")
    assert 0 < tokenizer.bos_token_id < 300 and tokenizer.bos_token_id != tokenizer.eos_token_id
    tokenizer.save_pretrained(folder)
    path = tmp_path / "held-out.txt"
    path.write_text("".join(synthetic_articles(2, seed=9)))
    texts = list(read_documents(path, "text"))
    found = theirs(folder, "documents", tmp_path, "--corpus", str(path))
    assert_equal_to_four_digits(found, ours(folder, texts))
    assert found["bits_per_byte"] != pytest.approx(ours(run, texts)["bits_per_byte"], rel=1e-6)


TASK = """
task: "some task"
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{COLUMN}}"
process_results: !function nowhere.at_all
metric_list: [{metric: bits_per_byte}]
"""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["no_such_task"], "tasks=no_such_task is unknown"),
        (["nowhere.yaml"], "tasks=nowhere.yaml is not there"),
        (["list.yaml"], "tasks=list.yaml names no task"),
        (["garbled.yaml"], "tasks=garbled.yaml names no task"),
        (["nodata.yaml"], "tasks=nodata.yaml cannot be run (Unable to find"),
        (["nocolumn.yaml"], "tasks=nocolumn.yaml cannot be run ('nowhere' is undefined)"),
        (["documents", "--corpus", "empty.txt"], "corpus=empty.txt holds no text"),
        (["documents", "--limit", "0"], "limit=0 must be at least 1"),
    ],
)
def test_a_task_that_cannot_be_run_is_one_sentence(run, tmp_path, monkeypatch, capsys, asked, said):
    monkeypatch.chdir(tmp_path)
    without_code = TASK.replace("process_results: !function nowhere.at_all\n", "")
    Path("list.yaml").write_text("[1, 2]")
    Path("garbled.yaml").write_text("task: [")
    Path("empty.txt").write_text("\n \n")
    Path("data.jsonl").write_text('{"text": "some words"}\n')
    Path("nodata.yaml").write_text(without_code.replace("DATA", "nowhere.jsonl").replace("COLUMN", "text"))
    other = without_code.replace("some task", "other task")
    Path("nocolumn.yaml").write_text(other.replace("DATA", "data.jsonl").replace("COLUMN", "nowhere"))
    assert main(["eval", str(run), "--tasks", *asked]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]


def test_the_name_of_a_task_is_read_without_running_its_code(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "group.yaml").write_text("group: some group\ntask: [one, two]\n")
    assert name_in(tmp_path / "task.yaml") == "some task"
    assert name_in(tmp_path / "group.yaml") == "some group"
