"""Model cards say what a run recorded, their examples run, and one command publishes what belongs on the hub."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

from mla_experiments.cli import main


@pytest.fixture
def run(train):
    """The folder of a small run, trained and evaluated, seen from the working folder."""
    assert train("mla") == 0
    assert main(["eval", "mla"]) == 0
    return Path("weights/mla")


def example_of(card: Path) -> str:
    (example,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    return example


def test_the_card_of_a_run_says_what_was_trained_and_measured(run, capsys):
    card, rows = ModelCard.load(run / "README.md"), json.loads((run / "results.json").read_text())["results"]
    assert {"mla", "mla-experiments"} <= set(card.data.tags) and card.data.library_name == "transformers"
    stated = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    for row in rows:
        for metric in ("perplexity_per_token", "perplexity_per_word", "bits_per_byte"):
            assert stated[row["split"], metric] == row[metric]
    identity = json.loads((run / "run.json").read_text())["identity"]
    for fact in ("multi-head latent attention", f"{identity['steps']:,} steps", f"seed {identity['seed']}"):
        assert fact in card.text
    assert "`run.json` has every setting" in card.text and "import mla_experiments" in card.text
    capsys.readouterr()
    exec(example_of(run / "README.md"), {})
    assert capsys.readouterr().out.startswith("The history of")


def test_the_card_of_an_export_says_the_same_and_nothing_of_files_that_stayed_behind(run):
    assert main(["export", "mla", "out"]) == 0
    ours, theirs = ModelCard.load(run / "README.md"), ModelCard.load("out/README.md")
    assert theirs.data.eval_results == ours.data.eval_results
    training = re.search(r"## Training\n\n(.*?)`run.json`", ours.text, re.DOTALL)[1].strip()
    assert training in theirs.text and "run.json" not in theirs.text and "mla_experiments" not in theirs.text
    without_package = "import sys; sys.modules['mla_experiments'] = None\n" + example_of(Path("out/README.md"))
    asked = [sys.executable, "-c", without_package]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    assert said.startswith("The history of")


def test_a_model_that_was_not_trained_here_is_not_said_to_be(run):
    assert main(["export", "mla", "out"]) == 0
    assert main(["import", "out", "ours"]) == 0
    assert main(["export", "ours", "again"]) == 0
    text = Path("again/README.md").read_text()
    assert "## Training" not in text and "Trained" not in text


def test_the_command_of_the_docs_publishes_a_run_without_its_checkpoints(run, monkeypatch):
    from huggingface_hub.cli.hf import main as hf

    (command,) = re.findall(r"`(hf upload NAME [^`]+)`", (REPOSITORY / "docs/use.md").read_text(encoding="utf-8"))
    uploaded = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **asked: uploaded.update(asked) or "")
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("NAME", "somebody/tiny")))
    try:
        hf()
    except SystemExit as end:
        assert end.code in (0, None)
    folder = Path(uploaded["folder_path"])
    assert uploaded["repo_id"] == "somebody/tiny" and uploaded["path_in_repo"] == "." and folder == run
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    kept = set(
        filter_repo_objects(
            files, allow_patterns=uploaded["allow_patterns"], ignore_patterns=uploaded["ignore_patterns"]
        )
    )
    assert any(name.startswith("checkpoint-") for name in files)
    assert {"README.md", "config.json", "model.safetensors", "results.json", "run.json", "tokenizer.json"} <= kept
    assert all(Path(name).suffix in (".json", ".jsonl", ".md", ".safetensors") and "/" not in name for name in kept)
