"""Checkpoints that are whole or not used: a seal of checksums is written last and verified before resuming."""

import json
from pathlib import Path

from ..manifest import file_hash, write_json

SEAL = "checksums.json"


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file of a finished checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    write_json(folder / SEAL, {str(path.relative_to(folder)): file_hash(path) for path in files})


def is_whole(folder: Path) -> bool:
    """Return whether every sealed file is there, unchanged."""
    try:
        sums = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(sums) and all(file_hash(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def in_order(run_folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first."""
    found = [path for path in run_folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Return the optimiser step at which a checkpoint was saved."""
    return int(folder.name.removeprefix("checkpoint-"))


def last_whole(run_folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run; broken ones are named and passed over, never deleted."""
    for folder in reversed(in_order(run_folder)):
        if is_whole(folder):
            return folder
        print(f"{folder} is incomplete or damaged; trying the one before.")
    return None
