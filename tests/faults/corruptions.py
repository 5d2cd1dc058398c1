"""Damage files of prepared data, of a finished run and of a half-done one at random; see whether anybody is misled.

    python tests/faults/corruptions.py --count 500 --seed 0

After each damage the user's commands run: sometimes `data` again, then `train --resume` of both, then `eval`. Each must
either end with one sentence, or all of them with the very weights, metrics and scores of undamaged runs.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from conftest import command, synthetic_articles  # noqa: E402 - once it can be found
from faults.forked import TRAINING, Ended, prepare, run  # noqa: E402

from mla_experiments.manifest import write_record  # noqa: E402
from mla_experiments.run_files import read_run  # noqa: E402
from mla_experiments.training import checkpoints  # noqa: E402

DATA = command("data", corpus="source.txt", vocab_size=300, sequence_length=32)
TRAIN, EVAL = command("train", **TRAINING | {"eval_steps": 20}), ["eval"]
FINISH = [*TRAIN, "--run", "done"]
SCORES = ("nats", "tokens", "words", "bytes", "perplexity_per_word", "bits_per_byte")
STOPPED_AT = 25  # of 40 steps


def half_done(root: Path) -> dict:
    """Make a folder with data, a finished run and one killed half-way; return what undamaged ones would end with."""
    prepare(root, synthetic_articles(40))
    for argv in (TRAIN, FINISH, EVAL):
        ended = run(argv, root)
        assert ended.code == 0, ended.said
    expected = outcome(root)
    folder = root / "weights" / "mla"
    shutil.rmtree(folder)
    ended = run([*TRAIN, "--save_total_limit", "9"], root)
    assert ended.code == 0, ended.said
    for checkpoint in checkpoints.in_order(folder):
        if checkpoints.step_of(checkpoint) > STOPPED_AT:
            shutil.rmtree(checkpoint)
    facts = read_run(folder)
    write_record(folder / "run.json", {name: facts[name] for name in facts if name != "files"} | {"status": "running"})
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("run.json", "metrics.jsonl"):
            path.unlink()
    for leftover in (root / "results.json", root / "results.md", root / "log.txt"):
        leftover.unlink()
    return expected


def outcome(root: Path) -> dict:
    """Return what counts: weights, metrics, scores."""
    rows = json.loads((root / "results.json").read_text())["results"]
    names = [f"{run}/{name}" for run in ("mla", "done/mla") for name in ("model.safetensors", "metrics.jsonl")]
    found = {name: (root / "weights" / name).read_bytes() for name in names}
    return found | {"scores": [[row[name] for name in SCORES] for row in rows]}


def damage(root: Path, chosen: random.Random) -> tuple[str, Path]:
    """Damage one file; return how, and which."""
    group = root / chosen.choice(("data/corpus", "data/tokenizer", "data/tokens", "weights/mla", "weights/done"))
    files = sorted(path for path in group.rglob("*") if path.is_file() and path.stat().st_size)  # not the lock
    victim, kind = chosen.choice(files), chosen.choice(("truncate", "flip", "delete", "swap"))
    content = bytearray(victim.read_bytes())
    if kind == "truncate":
        victim.write_bytes(content[: chosen.randrange(len(content))])
    elif kind == "flip":
        content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        victim.write_bytes(content)
    elif kind == "delete":
        victim.unlink()
    else:
        other = chosen.choice([path for path in files if path != victim])
        victim.write_bytes(other.read_bytes())
        other.write_bytes(content)
    return kind, victim.relative_to(root)


def verdict(root: Path, expected: dict, chosen: random.Random) -> str:
    """Run the user's commands; return `refused`, `harmless`, or what went wrong."""
    commands = [[*TRAIN, "--resume"], [*FINISH, "--resume"], EVAL]
    if chosen.random() < 0.3:
        commands.insert(0, DATA)
    for argv in commands:
        ended: Ended = run(argv, root)
        if "Traceback" in ended.said:
            return f"traceback from {argv[0]}: {ended.said[-2000:]}"
        if ended.code == 2 and sum(line.startswith("error: ") for line in ended.said.splitlines()) == 1:
            return "refused"
        if ended.code != 0:
            return f"exit code {ended.code} from {argv[0]}: {ended.said[-2000:]}"
    found = outcome(root)
    differing = [name for name in expected if found[name] != expected[name]]
    return f"another result: {', '.join(differing)}" if differing else "harmless"


def corrupt(folder: Path, count: int, seed: int, progress=print) -> Counter:
    """Return how often each verdict fell, by kind of damage; a wrong one ends the count with what it was."""
    chosen, pristine, counts = random.Random(seed), folder / "pristine", Counter()
    pristine.mkdir()
    expected = half_done(pristine)
    for number in range(count):
        root = folder / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(pristine, root)  # times of files are kept: the corpus's source stays known
        kind, victim = damage(root, chosen)
        said = verdict(root, expected, chosen)
        if said not in ("refused", "harmless"):
            progress(f"{kind} {victim}: {said}", flush=True)
        counts[kind, said if said in ("refused", "harmless") else "WRONG"] += 1
        if number % 50 == 49:
            progress(f"{number + 1}: {dict(counts)}", flush=True)
    return counts


def main() -> int:
    """Report what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = corrupt(Path(folder), given.count, given.seed)
    for (kind, said), number in sorted(counts.items()):
        print(f"{kind}, {said}: {number}")
    print(f"wrong: {sum(number for (_, said), number in counts.items() if said == 'WRONG')} of {given.count}")
    return int(any(said == "WRONG" for _, said in counts))


if __name__ == "__main__":
    sys.exit(main())
