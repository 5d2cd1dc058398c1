"""lm-evaluation-harness, on the same documents, gives our perplexities: this says what they mean."""

import json

import pytest
import yaml
from conftest import synthetic_articles, wikitext_file
from transformers import AutoTokenizer, set_seed

from mla_experiments.cli import main
from mla_experiments.data import read_documents
from mla_experiments.evaluation.perplexity import score_documents
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model

CONTEXT = 32  # short, so that most documents need many windows


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


@pytest.mark.parametrize(
    ("task", "said"),
    [("no_such_task", "tasks=no_such_task is unknown"), ("nowhere.yaml", "tasks=nowhere.yaml is not there")],
)
def test_an_unknown_task_is_one_sentence(run, tmp_path, capsys, task, said):
    assert main(["eval", str(run), "--tasks", task, "--output_dir", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
