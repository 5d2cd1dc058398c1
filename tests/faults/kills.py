"""Kill training runs at random moments, resume each, and compare with a run that nobody killed, bit for bit.

    python tests/faults/kills.py --kills 200 --writing 50 --stops 50 --seed 0

A kill is SIGKILL; every third resumed run is killed again. A stop is SIGTERM, at any moment too: while a command still
starts, in a step, in a validation, while a checkpoint or the final weights are written.
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

from conftest import command, synthetic_articles  # noqa: E402 - once it can be found
from faults.forked import STEPS, TRAINING, prepare, run, seconds_of, start, wait  # noqa: E402

from mla_experiments.training import checkpoints  # noqa: E402

RESULT = ("model.safetensors", "metrics.jsonl")


def kill_and_resume(root: Path, kills: int, writing: int, stops: int, seed: int, progress=print) -> dict:
    """Return how often each thing happened, and the longest wait for a stop.

    Args:
        root: an empty folder.
        kills: how many.
        writing: at least so many of them while a checkpoint is being written.
        stops: how many times SIGTERM is sent in place of SIGKILL.
        seed: of the moments.
        progress: is told now and then.
    """
    chosen = random.Random(seed)
    prepare(root, synthetic_articles(40))
    training, folder, log = command("train", **TRAINING), root / "weights/mla", root / "log.txt"
    duration = seconds_of(training, root)
    expected = {name: (folder / name).read_bytes() for name in RESULT}
    counts = dict.fromkeys(("killed", "while writing", "stopped", "resumed", "runs", "differing"), 0)
    counts["seconds to stop"] = 0.0
    while counts["killed"] < kills or counts["while writing"] < writing or counts["stopped"] < stops:
        shutil.rmtree(root / "weights")
        faults, kinds = 0, []
        while faults == 0 or chosen.random() < 1 / 3:
            missing = {"killed": max(0, kills - counts["killed"]), "stopped": max(0, stops - counts["stopped"])}
            kind = chosen.choices(list(missing), [max(1, number) for number in missing.values()])[0]
            share = (writing - counts["while writing"]) / max(1, missing["killed"])
            wants_writing = kind == "killed" and chosen.random() < max(0.3, share)
            before = unfinished(folder)
            child = start([*training, "--resume"] if folder.exists() else training, root, log)
            wait_for_moment(folder, before, chosen, duration, wants_writing)
            os.kill(child, signal.SIGKILL if kind == "killed" else signal.SIGTERM)
            begun = time.monotonic()
            ended = wait(child, log)
            assert "Traceback" not in ended.said, ended.said
            if ended.code == 0:
                break  # it had come to its end before
            assert ended.code == -signal.SIGKILL if kind == "killed" else ended.code in (130, -signal.SIGTERM), ended
            faults += 1
            counts[kind] += 1
            kinds.append(f"{kind} from step {last_step(folder)}")
            counts["while writing"] += kind == "killed" and bool(unfinished(folder) - before)
            if kind == "stopped":
                counts["seconds to stop"] = max(counts["seconds to stop"], round(time.monotonic() - begun, 2))
        ended = run([*training, "--resume"] if folder.exists() else training, root)
        assert ended.code == 0, ended.said
        counts["runs"] += faults > 0
        if differing := [name for name in RESULT if (folder / name).read_bytes() != expected[name]]:
            counts["differing"] += 1
            progress(f"{', '.join(differing)} after {kinds}: {(folder / RESULT[1]).read_text()}", flush=True)
        else:
            counts["resumed"] += faults
        if counts["runs"] % 10 == 0:
            progress(counts, flush=True)
    return counts


def last_step(folder: Path) -> int:
    """Return the step of a run's last checkpoint."""
    return max(map(checkpoints.step_of, checkpoints.in_order(folder)), default=0)


def unfinished(folder: Path) -> set[int]:
    """Return the checkpoints of a run that are being written, or were when its process died, by their inodes."""
    try:
        return {entry.inode() for entry in os.scandir(folder / checkpoints.PARTIAL)}
    except FileNotFoundError:
        return set()


def wait_for_moment(
    folder: Path, before: set[int], chosen: random.Random, duration: float, wants_writing: bool
) -> None:
    """Sleep until a random moment of the run, or one in which a checkpoint is being written that was not `before`."""
    if not wants_writing:
        time.sleep(chosen.uniform(0, duration))
        return
    last, seen = last_step(folder), set(before)
    skipped, deadline = chosen.randrange(max(1, (STEPS - last) // TRAINING["save_steps"])), time.monotonic() + duration
    while time.monotonic() < deadline:
        if new := unfinished(folder) - seen:
            if skipped == 0:
                time.sleep(chosen.uniform(0, 0.01))
                return
            skipped -= 1
            seen |= new
        time.sleep(0.0005)


def main() -> int:
    """Report what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writing", type=int, default=50)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_and_resume(Path(folder), **vars(given))
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    return int(counts["resumed"] != counts["killed"] + counts["stopped"] or counts["seconds to stop"] > 10)


if __name__ == "__main__":
    sys.exit(main())
