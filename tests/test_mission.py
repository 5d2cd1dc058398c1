"""The documented commands, word for word, and the notebook, executed on a copy of this repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

SMALL = (
    "--train_tokens 4096 --eval_steps 0.9 --validation_tokens 512 "
    "--hidden_size 32 --num_attention_heads 4 --num_hidden_layers 1"
)


LINE = "torch transformers datasets matplotlib numpy tqdm"  # what the mission's users install, word for word


@pytest.fixture
def clone(tmp_path) -> Path:
    parts = ("mla_experiments", "data", "experiments", "notebooks", "train_model.py", "eval_model.py")
    ignore = shutil.ignore_patterns("__pycache__", "corpus", "tokenizer", "tokens")
    for part in parts:
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / "clone" / part, ignore=ignore)
        else:
            shutil.copy(source, tmp_path / "clone" / part)
    shutil.copytree(
        REPOSITORY / "mla_experiments" / "data", tmp_path / "clone/mla_experiments/data", dirs_exist_ok=True
    )
    return tmp_path / "clone"


@pytest.fixture
def user_s_python(tmp_path) -> Path:
    """The Python of an environment of its own, made by the user's line at the versions of `constraints.txt`."""
    python = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))  # the same packages, sooner
    installer = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    constraints = ["--quiet", "--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([*installer, *constraints, *LINE.split()], check=True, env={**os.environ, **links})
    return python


def environment(tmp_path: Path, python: Path) -> dict:
    """As a user has it, with `python` on the path, the hub out of reach, and the package not installed."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONSAFEPATH": ""}
    own["PYTHONDONTWRITEBYTECODE"] = ""  # what one command has compiled of the libraries, the next need not
    return {**os.environ, **own}


@pytest.mark.slow
def test_the_mission_s_line_and_commands_work_word_for_word(clone, user_s_python, tmp_path):
    assert f"pip install {LINE}\n" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    missing = "import importlib.util as u; assert not [n for n in ('accelerate', 'gensim') if u.find_spec(n)]"
    subprocess.run([user_s_python, "-c", missing], check=True)
    commands = (
        "cd data && python download_data.py && python hftokenizer.py && python construct_dataset.py && cd .. "
        f"&& python train_model.py {SMALL} && python eval_model.py"
    )
    done = subprocess.run(
        commands,
        shell=True,
        cwd=clone,
        env=environment(tmp_path, user_s_python),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Installing gensim into" in done.stdout and "Installing accelerate into" in done.stdout
    assert "WARNING: WikiText-103 could not be fetched" in done.stdout
    assert "taking demo; --preset reference or --preset demo chooses" in done.stdout
    for name in ("mha", "mqa", "mla"):
        assert (clone / f"weights/{name}/model.safetensors").is_file()
        assert (clone / f"figures/{name}.png").is_file()
    assert (clone / "figures/all.png").is_file()
    results = json.loads((clone / "results.json").read_text(encoding="utf-8"))
    assert results["corpus"] == "wiki-sample" and len(results["results"]) == 6
    for row in results["results"]:
        assert f"{row['bits_per_byte']:.4f}" in done.stdout


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(clone, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(clone / "notebooks" / "colab.ipynb", as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    settings.source = f'corpus, preset, more = "wiki-sample", "demo", "{SMALL}"'
    client = nbclient.NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(clone / "notebooks")}})
    client.execute(env=environment(tmp_path, Path(sys.executable)))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2, "curves, and quality against cache"
    text = "".join(output.get("text", "") for output in outputs)
    assert "bits/byte" in text and "The history of" in text
