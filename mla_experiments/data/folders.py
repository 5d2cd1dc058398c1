"""Which files of a folder are read, in an order that its file system has no part in, and which are not, and why."""

import hashlib
import os
from pathlib import Path

from ..errors import UserError, printable
from ..manifest import MANIFEST, PARTIAL
from ..run_files import RUN_FILE
from .formats import BLOCK, COMPRESSED, KINDS, DataFile, data_file, kind_of, open_binary, plain_name

ABOUT = ("readme", "license", "licence", "copying", "notice", "citation")  # at the top of a folder: not its text
RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of `datasets`, beside Arrow

Skipped = dict[str, list[str]]  # what it is: names


def files_of(folder: Path) -> tuple[list[DataFile], Skipped]:
    """Return the files of a folder and of those below that hold text, and what else is there.

    Raises:
        UserError: none holds text, or one that would be read is a link that leads out of the folder.
    """
    chosen: dict[Path, Path] = {}  # the file itself: its name here
    skipped: Skipped = {}
    for path in _walk(folder):
        if (what := _what_else(path, folder)) is None:
            itself = path.resolve()
            if not itself.is_relative_to(folder.resolve()):
                raise UserError(
                    f"corpus={folder} holds {path.name}, a link that leads out of it; copy the file itself there"
                )
            what = "links to files that are read" if itself in chosen else None
            chosen.setdefault(itself, path)
        if what:
            skipped.setdefault(what, []).append(_name(path, folder))
    paths = sorted(chosen.values(), key=lambda path: path.relative_to(folder).parts)
    files = [data_file(path) for path in paths]
    if not files:
        found = f"; it holds {said(skipped)}" if skipped else ""
        raise UserError(f"corpus={folder} is a folder without any {', '.join(KINDS)} file{found}: give one with text")
    return _without_copies(files, folder, skipped), skipped


def others_in(folder: Path, read: list[str]) -> Skipped:
    """Return what else is in a folder but the files that `datasets` reads there."""
    itself = {Path(name).resolve() for name in read}
    skipped: Skipped = {}
    for path in _walk(folder):
        if path.resolve() not in itself:
            what = _what_else(path, folder) or f"{path.suffix.lower()} not of the split train"
            skipped.setdefault(what, []).append(_name(path, folder))
    return skipped


def said(skipped: Skipped, most: int = 3) -> str:
    """Return in words what is not read: how many of each kind, and a few names."""
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
        for what, names in sorted(skipped.items())
    )


def _walk(folder: Path) -> list[Path]:
    """Return what lies below a folder, links last. Folders that are hidden, ours or links stand there unopened."""

    def complain(error: OSError):
        raise UserError(f"corpus={folder} cannot be read ({error}); see its permissions") from None

    found = []
    for root, folders, names in os.walk(folder, onerror=complain):
        unopened = [name for name in folders if _folder_is(Path(root, name))]
        folders[:] = [name for name in folders if name not in unopened]
        found += [Path(root, name) for name in (*names, *unopened)]
    return sorted(found, key=lambda path: (path.is_symlink(), path.relative_to(folder).parts))


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder).as_posix())


def _folder_is(path: Path) -> str | None:
    """Return what a folder is that is not opened, None for one that is."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        return "links to folders"
    is_ours = path.name.endswith(PARTIAL) or any((path / name).is_file() for name in (MANIFEST, RUN_FILE))
    return "folders of mla-experiments" if is_ours else None


def _what_else(path: Path, folder: Path) -> str | None:
    """Return what a path is that is not read, None for one that is."""
    if path.is_dir():
        return _folder_is(path)
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "no files"
    if path.parent == folder and path.name.split(".")[0].lower() in ABOUT:
        return "about the folder"
    if path.name in RECORDS:
        return "records of datasets"
    if kind_of(path) is None:
        return printable(path.suffix.lower()) or "without an ending"
    return None


def _without_copies(files: list[DataFile], folder: Path, skipped: Skipped) -> list[DataFile]:
    """Leave out of the files of one name, compressed or not, those that hold what another holds: `gunzip -k`."""
    alike: dict[Path, list[DataFile]] = {}
    for file in files:
        alike.setdefault(file.path.with_name(plain_name(file.path)), []).append(file)
    copies = set()
    for group in alike.values():
        hashes: set[str] = set()
        for file in sorted(group, key=lambda file: file.path.suffix.lower() in COMPRESSED) if len(group) > 1 else []:
            if (content := _content_hash(file)) in hashes:
                copies.add(file)
                skipped.setdefault("compressed copies", []).append(_name(file.path, folder))
            hashes.add(content)
    return [file for file in files if file not in copies]


def _content_hash(file: DataFile) -> str:
    digest = hashlib.sha256()
    try:
        with open_binary(file) as binary:
            while block := binary.read(BLOCK):
                digest.update(block)
    except Exception:  # a broken one is no copy; what is wrong with it is said where it is read
        return str(file.path)
    return digest.hexdigest()
