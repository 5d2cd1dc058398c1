"""Folders that say what made them: each stage writes one whole folder with a `manifest.json`, or leaves none.

A manifest holds the stage's `request` (what was asked for, hashes of what it was made from included), the `hash` of
the content, and whatever facts later stages need. A stage whose folder already answers the same request does nothing.

Manifests and all other records that are read again (of runs, checkpoints, scores, studies) carry a checksum of
themselves, and those of folders the checksums of their files: damage is found where it is read, not in the results.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from .errors import InUse, UserError

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # ends the name of what is being written
CHECKSUM = "sha256"  # of a record's other fields


def read_manifest(folder: Path, made_by: object) -> dict:
    """Return the manifest of `folder`.

    Raises:
        UserError: there is none, or it is damaged; `made_by` is the command that makes the folder.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not there yet; make it with: {made_by}")
    try:
        return read_record(path)
    except ValueError:
        raise UserError(f"{path} is damaged; delete {folder} and make it again with: {made_by}") from None


def read_whole(folder: Path, made_by: object) -> dict:
    """Return the manifest of `folder`, all of whose files have been checked.

    Raises:
        UserError: as `read_manifest`, or a file is not what was written.
    """
    manifest = read_manifest(folder, made_by)
    if damaged := changed_files(folder, manifest["files"]):
        raise UserError(
            f"{Path(folder) / damaged[0]} is not what was written there; "
            f"delete {folder} and make it again with: {made_by}"
        )
    return manifest


def is_current(folder: Path, request: dict) -> bool:
    """Return whether `folder` was made, whole, for this very request, and is as it was made."""
    try:
        return read_whole(folder, "")["request"] == json.loads(json.dumps(request))
    except (UserError, KeyError):
        return False


@contextlib.contextmanager
def new_folder(folder: Path, request: dict) -> Iterator[tuple[Path, dict]]:
    """Make `folder` whole or not at all: yields a scratch folder and a manifest to fill, and moves it in place.

    One process at a time does so; another one waits, and says so.

    Raises:
        UserError: something else stands there, which replacing would delete.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise UserError(
            f"{folder} is not what a command here made, and is kept; move it away, or choose another folder"
        )
    manifest = {"request": request, "versions": library_versions()}
    with locked(folder), whole_folder(folder) as scratch:
        yield scratch, manifest
        manifest["files"] = file_hashes(scratch)
        write_record(scratch / MANIFEST, manifest)


def scratch_for(path: Path) -> Path:
    """Return where is written what will take the place of `path`: hidden, and no name that people give their own."""
    return path.with_name(f".{path.name}{PARTIAL}")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder that takes the place of `folder` at the end; after an error all is as it was.

    What stood there before is replaced only once the new folder is complete.

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(folder)
    scratch, replaced = scratch_for(folder), folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        scratch.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name]
        of_disk = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write into an open file names none
        if not (any(name.startswith(str(scratch)) for name in names) if names else of_disk):
            raise  # it is something else that cannot be read
        raise UserError(
            f"{folder} could not be written ({error.strerror or error}); what stood there is kept: free space on the "
            "disk, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, patience: float = -1) -> Iterator[None]:
    """Keep other processes, which ask for it too, from `folder`; the lock of a process that died holds nobody.

    Args:
        folder: to be there or not; the lock stands beside it.
        patience: seconds to wait for the process that has it; -1 waits for ever.

    Raises:
        InUse: it still has it.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if patience == 0:
                raise
            print(f"Waiting for another process that works in {folder}.", flush=True)
            lock.acquire(timeout=patience)
    except Timeout:
        raise InUse(f"{folder} is in use by another process; wait until that ends") from None
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: dict | list) -> None:
    """Write JSON so that the file is always either the old one or the new one, whole."""
    scratch = scratch_for(path)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if any("\ud800" <= sign <= "\udfff" for sign in text):  # of the name of a file that is not in UTF-8
        text = json.dumps(content, indent=2)
    scratch.write_text(text + "\n", encoding="utf-8")
    flush(scratch)
    scratch.replace(path)


def flush(*paths: Path) -> None:
    """Have files, and the names in folders, on the disk itself before going on, so that a power failure spares them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_record(path: Path, content: dict) -> None:
    """Write JSON with a checksum of itself, for `read_record`."""
    content = json.loads(json.dumps(content))  # as it is read again: names of numbers become text, and sort as such
    write_json(path, content | {CHECKSUM: _digest(content)})


def read_record(path: Path) -> dict:
    """Return what `write_record` wrote.

    Raises:
        ValueError: it is not what was written.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop(CHECKSUM)
    except (AttributeError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{path} is no record") from None
    if checksum != _digest(content):
        raise ValueError(f"{path} is not what was written there")
    return content


def keep_others(record: Path, *beside: Path) -> None:
    """Refuse to write a record where something stands that `write_record` did not write, or that was changed since.

    Args:
        record: to be written; it may be there from before.
        beside: what is written with it, and is ours where the record is.

    Raises:
        UserError: something else stands there, which writing would lose.
    """
    stands = [path for path in (record, *beside) if path.exists()]
    try:
        if stands:
            read_record(record)
    except (OSError, ValueError):
        raise UserError(
            f"{stands[0]} is not what a command here wrote, and is kept; move it away, or choose another folder"
        ) from None


def check_folder(folder: Path, field: str) -> None:
    """Refuse, before work is done, a folder that cannot be written to, by the name of its field.

    Raises:
        UserError: a file stands there or in its way, or one may not write there.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{field}={folder} cannot be a folder, since {there} is a file; choose another place")
    if not os.access(there, os.W_OK):
        raise UserError(f"{field}={folder} cannot be written, since {there} may not be; choose another place")


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file in a folder and those below, by its name from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def changed_files(folder: Path, hashes: dict[str, str]) -> list[str]:
    """Return the names of files that are gone, not as `hashes` says, or not in the folder at all."""
    paths = {name: Path(folder) / name for name in hashes}
    return [
        name
        for name, path in paths.items()
        if not is_inside(name) or not path.is_file() or file_hash(path) != hashes[name]
    ]


def is_inside(name: str) -> bool:
    """Return whether the name of a file, as a record or an index gives it, stays in the folder that it counts from."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


version_of = functools.cache(version)  # a study asks hundreds of times, and each time reads files


def library_versions() -> dict[str, str]:
    """Return the versions of what influences a result, this package's own among them."""
    from . import __version__

    versions = {"python": platform.python_version(), "mla-experiments": __version__}
    for name in ("torch", "transformers", "tokenizers", "datasets", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version_of(name)
    return versions


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
