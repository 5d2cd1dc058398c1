"""What to run next, or in place of something, said as the user came: scripts in a clone, else the installed command."""

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "mla-experiments"
COMMAND = re.compile(rf"(?<![\w/.-]){PROGRAM} (?=[a-z])")
USUAL = {"data_dir": "data", "weights_dir": "weights", "studies_dir": "studies"}  # where commands look untold

PLACES = {Path(): "", Path(".."): "cd ..; "}  # where a script of a clone may be, and how to get there


@dataclass(frozen=True)
class Step:
    """Something to run; as a string, how: a script of a clone that is here or one folder up, or a sub-command.

    Attributes:
        script: such as "train_model.py", with flags if any.
        command: the same of the installed command, such as "train".
    """

    script: str
    command: str

    def __str__(self) -> str:
        place = self._place()
        return f"{PROGRAM} {self.command}" if place is None else f"{PLACES[place]}python {self.script}"

    def _place(self) -> Path | None:
        """The folder of a clone in which the script is, seen from here."""
        name = self.script.split()[0]
        return next((place for place in PLACES if (place / name).is_file()), None)

    def with_flags(self, flags: str) -> "Step":
        """Return the same with more flags, if there are any."""
        more = f" {flags.strip()}" if flags else ""
        return Step(self.script + more, self.command + more)

    def with_folders(self, **folders: Path | str) -> "Step":
        """Return the same with the flags that `elsewhere` gives, as they read where the script is run."""
        return self.with_flags(elsewhere(self._place() or Path(), **folders))


def as_typed_here(text: str) -> str:
    """Return a text with every command of ours in it as it is typed here, where it is not on the path.

    That is in an environment that is not activated, as `make demo` leaves one, and in a clone that is not installed.

    Args:
        text: a command, or a sentence that names some.
    """
    return text if shutil.which(PROGRAM) else COMMAND.sub(lambda _: f"{_program_here()} ", text)


def _program_here() -> str:
    beside = Path(sys.executable).with_name(PROGRAM)
    if not beside.is_file():
        return "python -m mla_experiments"
    near = Path(os.path.relpath(beside))
    return shlex.quote(str(beside if ".." in near.parts else near))


def elsewhere(place: Path = Path(), **folders: Path | str) -> str:
    """Return the flags that a next step needs to find folders; none for the usual ones.

    Args:
        place: where the next step is run, seen from here.
        folders: by the names of their flags.
    """
    said = {name: Path(path) for name, path in folders.items() if not _is_usual(Path(path).resolve(), USUAL[name])}
    return "".join(f" --{name} {shlex.quote(str(_seen_from(place, path)))}" for name, path in said.items())


def _seen_from(place: Path, path: Path) -> Path:
    return path if path.is_absolute() or place == Path() else Path(os.path.relpath(path, place))


def _is_usual(place: Path, usual: str) -> bool:
    """Whether a command looks there untold; the scripts in the folder `data` of a clone look beside themselves."""
    return place == Path(usual).resolve() or (place == Path.cwd() and (place / "hftokenizer.py").is_file())
