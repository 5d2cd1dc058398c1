"""Kill training runs at random moments, resume each, and compare with a run that nobody killed, bit for bit.

python tests/faults/kills.py --kills 200 --writing 50 --seed 0
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from conftest import synthetic_articles  # noqa: E402 - once it can be found
from faults.forked import TRAINING, command, prepare, run, seconds_of, start, wait  # noqa: E402

RESULT = ("model.safetensors", "metrics.jsonl")


def kill_and_resume(root: Path, kills: int, writing: int, seed: int, progress=print) -> dict[str, int]:
    """Return how often each thing happened: killed, of them while a checkpoint was written, resumed, differing.

    Args:
        root: an empty folder.
        kills: how many.
        writing: at least so many of them while a checkpoint is being written.
        seed: of the moments.
        progress: is told every tenth.
    """
    chosen = random.Random(seed)
    prepare(root, synthetic_articles(40))
    training = command("train", **TRAINING)
    duration = seconds_of(training, root)
    expected = {name: (root / "weights/mla" / name).read_bytes() for name in RESULT}
    counts = dict.fromkeys(("killed", "while writing", "resumed", "differing"), 0)
    while counts["killed"] < kills or counts["while writing"] < writing:
        shutil.rmtree(root / "weights")
        wants_writing = chosen.random() < max(
            0.3, (writing - counts["while writing"]) / max(1, kills - counts["killed"])
        )
        child = start(training, root, root / "log.txt")
        wait_for_moment(root / "weights/mla/partial", chosen, duration, wants_writing)
        os.kill(child, signal.SIGKILL)
        if wait(child, root / "log.txt").code != -signal.SIGKILL:
            continue  # it had ended before
        counts["killed"] += 1
        counts["while writing"] += any((root / "weights/mla/partial").glob("checkpoint-*"))
        resume = [*training, "--resume"] if (root / "weights/mla").exists() else training
        ended = run(resume, root)
        assert "Traceback" not in ended.said, ended.said
        counts["resumed"] += ended.code == 0
        counts["differing"] += any((root / "weights/mla" / name).read_bytes() != expected[name] for name in RESULT)
        if counts["killed"] % 10 == 0:
            progress(counts)
    return counts


def wait_for_moment(partial: Path, chosen: random.Random, duration: float, wants_writing: bool) -> None:
    """Sleep until a random moment of the run, or one in which a checkpoint is being written."""
    end = time.monotonic() + chosen.uniform(0, duration)
    skipped = chosen.randrange(8) if wants_writing else None  # checkpoints to let pass
    while skipped is None and time.monotonic() < end:
        time.sleep(0.001)
    deadline, was_writing = time.monotonic() + duration, False
    while skipped is not None and time.monotonic() < deadline:
        is_writing = any(partial.glob("checkpoint-*"))
        if is_writing and not was_writing:
            if skipped == 0:
                time.sleep(chosen.uniform(0, 0.01))
                return
            skipped -= 1
        was_writing = is_writing


def main() -> int:
    """Report what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writing", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_and_resume(Path(folder), given.kills, given.writing, given.seed)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    return int(counts["resumed"] != counts["killed"] or counts["differing"] > 0)


if __name__ == "__main__":
    sys.exit(main())
