"""No command reaches for the network that does not say so: all that works on local files is tried without any."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, command, synthetic_articles

WITHOUT_NETWORK = """
import json, os, socket, sys

def refuse(what, *_, **__):
    print("reached out:", what, file=sys.stderr)
    raise OSError("no network here")

def connect(self, address):
    return refuse(address) if self.family != socket.AF_UNIX else inner(self, address)

inner, socket.socket.connect = socket.socket.connect, connect
socket.getaddrinfo = refuse
from mla_experiments.cli import main
for argv in json.loads(sys.argv[1]):
    code = main(argv)
    assert code == 0, f"{argv} ended with {code}"
"""


def without_network(folder, *commands):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ |= {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(folder / "cache")}
    argv = [sys.executable, "-c", WITHOUT_NETWORK, json.dumps(commands)]
    return subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_what_works_on_local_files_opens_no_connection(tmp_path):
    (tmp_path / "source.txt").write_text("".join(synthetic_articles(40)), encoding="utf-8")
    stated = TINY | {"corpus": "source.txt", "vocab_size": 300, "attention": ["mla"]}
    (tmp_path / "tiny.yaml").write_text(json.dumps(stated))
    ended = without_network(
        tmp_path,
        command("data", corpus="source.txt", vocab_size=300, sequence_length=32),
        command("train", attention="mla", **TINY),
        ["eval"],
        ["eval", "--corpus", "source.txt"],
        ["generate", "mla", "--max-new-tokens", "3"],
        ["export", "mla", "out"],
        ["import", "out", "ours"],
        ["plan", "weights/mla"],
        ["compare", "mla"],
        ["kernels"],
        ["study", "tiny.yaml"],
        ["report", "studies/tiny"],
    )
    assert ended.returncode == 0 and "reached out" not in ended.stderr, ended.stderr[-3000:]


def test_a_command_that_asks_for_the_hub_does(tmp_path):
    """The watch above sees what it should."""
    ended = without_network(tmp_path, ["data", "download", "--corpus", "wikitext-2"])
    assert "reached out" in ended.stderr and "cannot be had from the Hugging Face hub" in ended.stderr
    assert not Path(tmp_path / "data/corpus").exists()
