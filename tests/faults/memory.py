"""Train for very many short steps with the real command, and see whether its memory grows.

    python tests/faults/memory.py --steps 100000

Memory is what the process itself holds (RssAnon, as Linux counts it), read from outside once a second. Logging
(1,000 times), validation with its figures (200) and checkpoints (100) come more often than in a day of training, which
has them 100, 20 and 5 times by default.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from conftest import command, synthetic_articles  # noqa: E402 - once it can be found
from faults.forked import TRAINING, prepare  # noqa: E402

from mla_experiments.benchmark.measure import PeakMemory  # noqa: E402

TENTHS = 10


def memory_of_training(root: Path, steps: int, pause: float = 1) -> list[float]:
    """Return the memory of a training run in MiB, read after pauses of so many seconds: the median of each tenth."""
    prepare(root, synthetic_articles(40))
    every = max(1, steps // 1000)
    often = {"train_tokens": steps * 128, "logging_steps": every, "eval_steps": 5 * every, "save_steps": 10 * every}
    argv = [sys.executable, "-m", "mla_experiments.cli", *command("train", **TRAINING | often)]
    samples = []
    with open(root / "log.txt", "wb") as log, subprocess.Popen(argv, cwd=root, stdout=log, stderr=log) as process:
        while process.poll() is None:
            samples.append(PeakMemory.now(process.pid) / 2**20)
            time.sleep(pause)
    assert process.returncode == 0, (root / "log.txt").read_text(errors="replace")[-2000:]
    cuts = [len(samples) * tenth // TENTHS for tenth in range(TENTHS + 1)]
    return [statistics.median(samples[start:end]) for start, end in itertools.pairwise(cuts)]


def main() -> int:
    """Report what came of it; the first tenth is the warm-up."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tenths = memory_of_training(Path(folder), given.steps)
    growth, minutes = 100 * (tenths[-1] / tenths[1] - 1), (time.monotonic() - begun) / 60
    print(f"MiB, median of each tenth: {', '.join(f'{value:.1f}' for value in tenths)}")
    print(f"steps: {given.steps}, minutes: {minutes:.0f}, growth after the warm-up: {growth:.2f} %")
    return int(growth > 1)


if __name__ == "__main__":
    sys.exit(main())
