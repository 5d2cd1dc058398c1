"""What to run next, or in place of something, said as the user came: scripts in a clone, else the installed command."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "mla-experiments"
USUAL = {"data_dir": "data", "weights_dir": "weights", "studies_dir": "studies"}  # where commands look untold


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
        name = self.script.split()[0]
        for folder, before in ((Path(), ""), (Path(".."), "cd ..; ")):
            if (folder / name).is_file():
                return f"{before}python {self.script}"
        return f"{PROGRAM} {self.command}"

    def with_flags(self, flags: str) -> "Step":
        """Return the same with more flags, if there are any."""
        more = f" {flags.strip()}" if flags else ""
        return Step(self.script + more, self.command + more)


def as_typed_here(command: str) -> str:
    """Return a command of ours as it is typed here, where it is not on the path.

    That is in an environment that is not activated, as `make demo` leaves one, and in a clone that is not installed.

    Args:
        command: that may begin with `mla-experiments`; others are returned as they are.
    """
    program, _, rest = command.partition(" ")
    if program != PROGRAM or shutil.which(PROGRAM):
        return command
    beside = Path(sys.executable).with_name(PROGRAM)
    if beside.is_file():
        near = Path(os.path.relpath(beside))
        return f"{shlex.quote(str(beside if '..' in near.parts else near))} {rest}"
    return f"python -m mla_experiments {rest}"


def elsewhere(**folders: Path | str) -> str:
    """Return the flags that a next step needs to find folders, by the names of their flags; none for the usual ones."""
    said = {name: folder for name, folder in folders.items() if not _is_usual(Path(folder).resolve(), USUAL[name])}
    return "".join(f" --{name} {shlex.quote(str(folder))}" for name, folder in said.items())


def _is_usual(place: Path, usual: str) -> bool:
    """Whether a command looks there untold; the scripts in the folder `data` of a clone look beside themselves."""
    return place == Path(usual).resolve() or (place == Path.cwd() and (place / "hftokenizer.py").is_file())
