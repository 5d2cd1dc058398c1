"""What to run next, or in place of something, said as the user came: scripts in a clone, else the installed command."""

from dataclasses import dataclass
from pathlib import Path


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
        return f"mla-experiments {self.command}"

    def with_flags(self, flags: str) -> "Step":
        """Return the same with more flags."""
        return Step(f"{self.script} {flags}", f"{self.command} {flags}")
