"""Checkpoints that are whole or not used: written aside, sealed with checksums, renamed in place, checked on resuming.

RUN/partial/checkpoint-N    being written
RUN/checkpoint-N            whole when it was written
RUN/set-aside/checkpoint-N  found broken; nothing here is read or deleted again
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import UserError, reason_of
from ..manifest import changed_files, file_hashes, flush, read_record, write_record

SEAL, PARTIAL, ASIDE = "checksums.json", "partial", "set-aside"


def seal(folder: Path) -> None:
    """Write the checksums of every file of a finished checkpoint, once all of it is on the disk."""
    (folder / SEAL).unlink(missing_ok=True)
    flush(*folder.rglob("*"))
    write_record(folder / SEAL, {"files": file_hashes(folder)})
    flush(folder)


def is_whole(folder: Path) -> bool:
    """Return whether every sealed file is there, unchanged."""
    try:
        files = read_record(folder / SEAL)["files"]
        return bool(files) and not changed_files(folder, files)
    except (OSError, ValueError, KeyError):
        return False


def publish(folder: Path, run_folder: Path) -> None:
    """Seal a checkpoint that was written aside and put it in its place, in one step."""
    seal(folder)
    place = run_folder / folder.name
    if place.exists():
        set_aside(place)
    folder.rename(place)
    flush(run_folder)
    folder.parent.rmdir()


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what to do when a folder of a run cannot be written."""
    try:
        yield
    except Exception as error:
        of_writing = isinstance(error, OSError | RuntimeError | SafetensorError)  # torch's and safetensors' among them
        of_else = isinstance(error, torch.OutOfMemoryError | torch.distributed.DistError)
        if of_else or not (of_writing or type(error) is Exception):  # which is what tokenizers raises
            raise
        raise UserError(
            f"{folder} could not be written ({reason_of(error)}); what was saved before is kept: see to space on the "
            "disk, then go on with --resume"
        ) from error


def in_order(run_folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first."""
    found = [path for path in run_folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Return the optimiser step at which a checkpoint was saved."""
    return int(folder.name.removeprefix("checkpoint-"))


def last_whole(run_folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run; broken ones newer than it are named and set aside."""
    for folder in in_order(run_folder / PARTIAL):
        print(f"{folder} was never finished; it is kept as {set_aside(folder, run_folder)}.")
    for folder in reversed(in_order(run_folder)):
        if is_whole(folder):
            return folder
        print(f"{folder} is incomplete or damaged; it is kept as {set_aside(folder)}, and the one before is tried.")
    return None


def set_aside(folder: Path, run_folder: Path | None = None) -> Path:
    """Move a checkpoint where nothing reads it; return its new place."""
    aside = (run_folder or folder.parent) / ASIDE
    aside.mkdir(exist_ok=True)
    number = 1
    while (place := aside / (folder.name if number == 1 else f"{folder.name}-{number}")).exists():
        number += 1
    return folder.rename(place)


def prune(run_folder: Path, keep: int | None, losses: dict[int, float]) -> None:
    """Delete all checkpoints but the `keep` last and the one of the lowest validation loss.

    Args:
        run_folder: of the run.
        keep: None keeps all.
        losses: validation loss by step, as far as there was one.
    """
    if keep is None:
        return
    found = in_order(run_folder)
    validated = [folder for folder in found if step_of(folder) in losses]
    best = min(validated, key=lambda folder: losses[step_of(folder)], default=None)
    for folder in found[: -max(1, keep)]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)
