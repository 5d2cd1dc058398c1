"""Studies and runs side by side: what compares is compared, what does not is refused or cut to what does."""

import json
import re

import pytest
import yaml
from conftest import synthetic_articles

from mla_experiments.cli import main
from mla_experiments.manifest import read_record, write_record

TINY = {
    "preset": "demo", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "sequence_length": 32,
    "batch_size": 4, "per_device_train_batch_size": 4, "train_tokens": 512, "warmup_tokens": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study, and runs on the same corpus with its tokenizer, with another one, and on another corpus."""
    root, patch = tmp_path_factory.mktemp("trained"), pytest.MonkeyPatch()
    patch.chdir(root)
    (root / "a.txt").write_text("".join(synthetic_articles(40)))
    (root / "b.txt").write_text("".join(synthetic_articles(30)).replace("river", "canal"))
    stated = TINY | {"vocab_size": 300, "corpus": "a.txt", "attention": ["mha", "mla"], "seeds": [0, 1]}
    (root / "tiny.yaml").write_text(yaml.safe_dump(stated))
    assert main(["study", "tiny.yaml"]) == 0
    for run, corpus, vocab_size in (("same", "a.txt", 300), ("fine", "a.txt", 320), ("other", "b.txt", 300)):
        data = f"--data_dir data-{run} --sequence_length 32"
        assert main(f"data --corpus {corpus} --vocab_size {vocab_size} {data}".split()) == 0
        more = {"train_tokens": TINY["train_tokens"] * (2 if run == "fine" else 1)}
        flags = " ".join(f"--{name} {value}" for name, value in (TINY | more).items() if name != "sequence_length")
        assert main(f"train --run {run} --attention gqa {flags} {data}".split()) == 0
        assert main(f"eval {run}/gqa --data_dir data-{run} --output_dir {run}".split()) == 0
    yield root
    patch.undo()


@pytest.fixture
def compare(trained, monkeypatch, capsys):
    """Return a function that compares what it is given, and tells exit code and what was said."""
    monkeypatch.chdir(trained)

    def call(*places):
        code = main(["compare", *places])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_study_and_a_run_stand_in_one_table_with_a_sentence_for_each_pair(compare, trained):
    code, out, _ = compare("studies/tiny", "same/gqa")
    assert code == 0 and "ppl/word" in out
    rows = [line for line in out.splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["studies/tiny: mha", "studies/tiny: mla", "same/gqa"]
    assert sum(line.startswith("- ") for line in out.splitlines()) == 3
    assert re.search(r"same/gqa against studies/tiny: mha: one seed and \w+ documents? cannot tell \(", out)
    results = json.loads((trained / "same" / "results.json").read_text())["results"]
    (bits,) = (row["bits_per_byte"] for row in results if row["split"] == "test")
    assert f"{bits:.4f}" in rows[2]


def test_with_other_tokenizers_bits_per_byte_alone_are_shown_and_why(compare):
    code, out, _ = compare("same/gqa", "fine/gqa")
    assert code == 0 and "Tokenizers differ" in out
    assert "ppl" not in out and "bits/byte" in out


def test_other_budgets_of_training_are_said(compare):
    _, out, _ = compare("same/gqa", "fine/gqa")
    tokens = {
        row.split("|")[1].strip(): row.split("|")[4].strip() for row in out.splitlines() if "/gqa" in row and "|" in row
    }
    assert tokens == {"same/gqa": f"{TINY['train_tokens']:,}", "fine/gqa": f"{2 * TINY['train_tokens']:,}"}
    assert f"Training differs, from {TINY['train_tokens']:,} to {2 * TINY['train_tokens']:,} tokens" in out
    assert "Training differs" not in compare("studies/tiny", "same/gqa")[1]


def test_another_recipe_or_other_text_by_the_same_name_is_said(compare, trained):
    (trained / "a.txt").write_text("".join(synthetic_articles(44)))
    data = "--data_dir data-more --sequence_length 32"
    assert main(f"data --corpus a.txt --vocab_size 300 {data}".split()) == 0
    flags = " ".join(f"--{name} {value}" for name, value in TINY.items() if name != "sequence_length")
    assert main(f"train --run more --attention gqa {flags} {data} --weight_decay 0.5".split()) == 0
    assert main(["eval", "same/gqa", "more/gqa", "--data_dir", "data-other", "--output_dir", "more"]) == 0
    code, out, _ = compare("same/gqa", "more/gqa")
    assert main(["eval", "same/gqa", "--data_dir", "data-same", "--output_dir", "same"]) == 0
    assert code == 0 and "Training differs in corpus_hash (" in out and "weight_decay (0.1, 0.5): what follows" in out


def test_one_run_by_two_paths_is_one(compare):
    assert compare("same/gqa", "weights/same/gqa", "weights/../weights/same/gqa") == compare("same/gqa")


def test_eval_leaves_out_perplexity_per_token_where_tokenizers_differ(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["eval", "same/gqa", "fine/gqa", "--data_dir", "data-same", "--output_dir", "both"]) == 0
    out = capsys.readouterr().out
    assert "ppl/token" not in out and "ppl/word" in out and "Tokenizers differ" in out


def test_scores_on_different_texts_are_refused(compare):
    code, _, err = compare("same/gqa", "other/gqa")
    assert code == 2 and err.count("\n") == 1
    assert "same/gqa (trained on " in err and "were scored on different texts" in err


def test_what_cannot_be_compared_is_one_sentence(compare, trained):
    (trained / "empty").mkdir(exist_ok=True)
    code, _, err = compare("empty")
    assert code == 2 and "empty is neither a study nor a run" in err
    code, _, err = compare()
    assert code == 2 and "compare needs folders" in err
    scores = trained / "weights" / "fine" / "gqa" / "scores.json"
    kept = scores.read_text()
    scores.write_text(json.dumps({"protocol": "another", "splits": {}}))
    code, _, err = compare("fine/gqa")
    assert code == 2 and "has not been scored; do it with: mla-experiments eval fine/gqa" in err
    assert main(["eval", "fine/gqa", "--data_dir", "data-fine", "--output_dir", "fine"]) == 0
    assert scores.read_text() == kept, "eval scores again what has no scores of today's protocol"


def test_an_unfinished_study_is_marked(compare, trained):
    path = trained / "studies" / "tiny" / "study.json"
    whole = path.read_text()
    content = read_record(path)
    content["runs"][-1]["done"] = False
    write_record(path, content)
    code, out, _ = compare("studies/tiny")
    path.write_text(whole)
    assert code == 0 and "unfinished: 1 runs to do" in out
