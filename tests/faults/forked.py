"""Commands in processes of their own that start at once: everything is imported, and then each is a fork."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from conftest import command

from mla_experiments import evaluation, report, training  # noqa: F401 - else every fork would import them anew
from mla_experiments.cli import main

STEPS = 40
# longer than one logging interval between checkpoints, and neither a multiple of the other
TRAINING = {
    "preset": "demo", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "sequence_length": 32,
    "batch_size": 4, "per_device_train_batch_size": 2, "train_tokens": STEPS * 128, "warmup_tokens": 256,
    "save_steps": 5, "eval_steps": 8, "logging_steps": 3, "attention": "mla", "data_dir": "data",
}  # fmt: skip


@dataclass
class Ended:
    """How a command ended: its exit code (negative: the signal) and all that it said."""

    code: int
    said: str


def start(argv: list[str], folder: Path, log: Path, prepared: Callable[[], object] = lambda: None) -> int:
    """Run a command in a folder, in a fork of this process, `prepared` there first; return the process's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 70
    try:
        with open(log, "wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - to its end
        os.chdir(folder)
        torch.set_num_threads(1)
        prepared()
        code = main(argv)
    except SystemExit as ended:  # argparse's, after --help
        code = ended.code
    except BaseException:  # as Python itself would end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, log: Path) -> Ended:
    """Wait for a process to end."""
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace"))


def run(argv: list[str], folder: Path) -> Ended:
    """Run a command to its end."""
    log = folder / "log.txt"
    return wait(start(argv, folder, log), log)


def seconds_of(argv: list[str], folder: Path) -> float:
    """Return how long a command takes."""
    begun = time.monotonic()
    ended = run(argv, folder)
    assert ended.code == 0, ended.said
    return time.monotonic() - begun


def prepare(folder: Path, articles: list[str]) -> None:
    """Prepare data in `folder/data`."""
    (folder / "source.txt").write_text("".join(articles), encoding="utf-8")
    ended = run(command("data", corpus="source.txt", vocab_size=300, sequence_length=32), folder)
    assert ended.code == 0, ended.said
