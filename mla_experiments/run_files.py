"""What a training run leaves in its folder, and how others read it: `run.json`, `metrics.jsonl`, weights, tokenizer."""

import json
from fnmatch import fnmatch
from pathlib import Path

from .errors import UserError
from .manifest import changed_files, read_record

RUN_FILE, METRICS_FILE = "run.json", "metrics.jsonl"


def read_run(folder: Path) -> dict:
    """Return what a run says of itself; empty where there is none, or a damaged one."""
    try:
        return read_record(Path(folder) / RUN_FILE)
    except (OSError, ValueError):
        return {}


def read_metrics(folder: Path) -> list[dict]:
    """Return the logged metrics of a run, up to a line that was never written to its end."""
    logged = []
    for line in (Path(folder) / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            logged.append(json.loads(line))
        except ValueError:
            break
    return logged


def check_files(folder: Path, pattern: str) -> None:
    """Refuse files of a finished run that are not what training wrote; folders without a run are not judged.

    Raises:
        UserError: a file that matches is gone or changed, or `run.json` is damaged.
    """
    folder = Path(folder)
    if not (folder / RUN_FILE).is_file():
        return
    run = read_run(folder)
    if not run:
        raise UserError(f"{folder / RUN_FILE} is damaged; copy the folder again, or train again with --overwrite")
    hashes = {name: digest for name, digest in run.get("files", {}).items() if fnmatch(name, pattern)}
    if damaged := changed_files(folder, hashes):
        raise UserError(
            f"{folder / damaged[0]} is not what training wrote there; copy the folder again, or train again with "
            "--overwrite (weights changed on purpose belong in a folder of their own)"
        )


def check_finished(folder: Path) -> None:
    """Refuse the folder of a run that still trains, or was stopped before its end.

    Raises:
        UserError: it is one.
    """
    if read_run(folder).get("status") == "running":
        raise UserError(
            f"{folder} is a run that has not finished; go on with --resume, or take one of its checkpoint folders"
        )
