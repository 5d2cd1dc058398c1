"""Commands in processes of their own: started, waited for, and gone in the end, on however busy a machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import REPOSITORY, TINY, command

PATIENCE = 240  # seconds for what takes a few: only a process that hangs needs so many
ENDLESS = {"train_tokens": 128 * 50_000, "save_steps": 1_000_000, "eval_steps": 1_000_000}


def training(**flags) -> list[str]:
    """Return the command that trains a tiny MLA."""
    return [sys.executable, "-m", "mla_experiments.cli", *command("train", attention="mla", **{**TINY, **flags})]


UNDRAWN = "from mla_experiments import report; report.draw_curves = lambda *_: []"  # which takes longer than the steps


def changed(code: str, **flags) -> list[str]:
    """Return the command that trains, some Python code run first, and draws no curves."""
    script = (
        f"import os, signal, sys\n{UNDRAWN}\n{code}\nfrom mla_experiments.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", script, *training(**flags)[3:]]


def in_background(argv: list[str]) -> list[str]:
    """Return a command as a shell starts it in the background: deaf to Ctrl-C."""
    return ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *argv]


def environment() -> dict[str, str]:
    """Return the environment of a command that finds this clone wherever it runs."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@contextmanager
def started(argv: list[str], folder: Path, **settings) -> Iterator[subprocess.Popen]:
    """Start a command, all that it says in one pipe; it is gone in the end, whatever comes of the test."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment()} | settings
    with subprocess.Popen(argv, cwd=folder, **settings) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Wait until something holds; a process that is to bring it about must live so long."""
    end = time.monotonic() + PATIENCE
    while True:
        ended = process is not None and process.poll() is not None  # before the condition, which it may bring about
        if condition():
            return
        assert not ended, f"it ended with {process.returncode} before that"
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_for_text(process: subprocess.Popen, text: str) -> None:
    """Read what a process says up to a line with some text."""
    said = ""
    while text not in said:
        line = process.stdout.readline()
        assert line, said
        said += line


def wait_until_it_trains(process: subprocess.Popen, folder: Path) -> None:
    """Wait until a run in `weights/mla` has made some steps."""
    path = folder / "weights/mla/metrics.jsonl"
    wait_for(lambda: path.is_file() and path.read_text().count("\n") > 5, process)
