"""Full disks, Ctrl-C and hostile files: one sentence each, and nothing that was whole is lost."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY

from mla_experiments.training import checkpoints


def command(**flags):
    argv = [sys.executable, "-m", "mla_experiments.cli", "train", "--attention", "mla"]
    for name, value in {**TINY, **flags}.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv


def environment():
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_resumable_and_says_how(prepared, tmp_path, number):
    many = {"train_tokens": 128 * 20_000, "save_steps": 1_000_000, "eval_steps": 1_000_000}
    process = subprocess.Popen(
        command(**many), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    path = tmp_path / "weights/mla/metrics.jsonl"
    while process.poll() is None and not (path.is_file() and path.read_text().count("\n") > 5):
        pass
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "--resume" in said
    (checkpoint,) = checkpoints.in_order(tmp_path / "weights/mla")
    assert checkpoints.is_whole(checkpoint)


def test_a_full_disk_leaves_the_checkpoint_before(prepared, tmp_path):
    """The limit on file sizes makes writes fail in the middle of a file, as a full disk does."""
    limited = (
        "import resource, sys\n"
        "from transformers import Trainer\n"
        "inner = Trainer._save_checkpoint\n"
        "def full(self, *args):\n"
        "    if self.state.global_step > 4: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "    inner(self, *args)\n"
        "Trainer._save_checkpoint = full\n"
        "from mla_experiments.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", limited, *command()[3:]]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "checkpoint-8 could not be written" in done.stderr and "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in checkpoints.in_order(tmp_path / "weights/mla")] == ["checkpoint-4"]
    assert checkpoints.is_whole(tmp_path / "weights/mla/checkpoint-4")
    again = subprocess.run(command(resume=True), cwd=tmp_path, env=environment(), capture_output=True, timeout=120)
    assert again.returncode == 0


def test_a_checkpoint_is_whole_only_with_every_byte(tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "state.json").write_text("{}")
    assert not checkpoints.is_whole(folder)
    checkpoints.seal(folder)
    assert checkpoints.is_whole(folder)
    for damage in (b"weightt", b"weight", b""):
        (folder / "model.safetensors").write_bytes(damage)
        assert not checkpoints.is_whole(folder)
    (folder / "model.safetensors").unlink()
    assert not checkpoints.is_whole(folder)
    (folder / checkpoints.SEAL).write_text(json.dumps({}))
    assert not checkpoints.is_whole(folder)


class Exploit:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_a_malicious_pickle_does_not_run_it(train):
    train(save_steps=4)
    folder = Path("weights/mla/checkpoint-8")
    evil = pickle.dumps(Exploit(Path("owned").absolute()))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(evil)
    checkpoints.seal(folder)  # even a sealed one
    facts = json.loads(Path("weights/mla/run.json").read_text())
    Path("weights/mla/run.json").write_text(json.dumps(facts | {"status": "running"}))
    for later in checkpoints.in_order(Path("weights/mla")):
        if checkpoints.step_of(later) > 8:
            (later / checkpoints.SEAL).unlink()
    with pytest.raises(Exception):  # noqa: B017 - whatever the library says, as long as nothing runs
        train(save_steps=4, resume=True)
    assert not Path("owned").exists()
