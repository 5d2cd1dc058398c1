"""The command line: one sub-command a file; those that write say what they wrote, and most of them what to run next.

Nothing heavy is imported before a command runs: the list of commands and most of their help need no model.
"""

import importlib
import sys
import tempfile
import traceback

from .. import allocator, registration, threads, versions
from ..errors import Missing, Stopped, UserError, lacks_memory, reason_of
from .installing import install
from .saying import make_any_terminal_do, refusal, say_last

registration.leave_to_commands()
threads.share_cores_with_others()  # before torch is loaded

COMMANDS = {  # its name: the file beside this one
    "choose": "choose", "data": "data", "train": "train", "eval": "evaluate", "generate": "generate",
    "export": "export", "import": "import_", "convert": "convert", "plan": "plan", "study": "study", "report": "report",
    "compare": "compare", "bench": "bench", "kernels": "kernels", "env": "env",
}  # fmt: skip
STEPPING = ("choose", "train", "eval", "generate", "study")  # which ask for the same memory at each step
UNEXPECTED = 70  # the exit code, as sysexits.h has it


def main(argv: list[str] | None = None, may_install: bool = False) -> int:
    """Run a sub-command and return the exit code.

    0; 1 where runs of a study have failed; 2 for input that cannot work; 70 for what nobody foresaw; 130 where somebody
    stopped it, and 141 where nobody reads what it says.

    Args:
        argv: the command line; that of the process if not given.
        may_install: whether what is missing may be installed into this environment: by the scripts of a clone alone.
    """
    argv = sys.argv[1:] if argv is None else argv
    make_any_terminal_do()
    code, said = (0, overview()) if not argv or argv[0] in ("-h", "--help") else ended(argv, may_install)
    return say_last(said, code, is_error=code in (2, UNEXPECTED))


def overview() -> str:
    """Return what there is to run."""
    lines = [f"  {name:<10}{(command(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    return (
        "usage: mla-experiments COMMAND [--config FILE.yaml] [--flag VALUE ...]\n\n"
        "Train and compare attention mechanisms of decoder language models.\n\n"
        + "\n".join(lines)
        + "\n\nStart with `choose YOUR-TEXT --cache-bytes-per-token 2048`, which answers in one command, or step by\n"
        "step with data, train, eval. mla-experiments COMMAND --help lists the flags of each, with examples."
    )


def command(name: str):
    """Return the file of a sub-command."""
    return importlib.import_module(f".{COMMANDS[name]}", __package__)


def ended(argv: list[str], may_install: bool) -> tuple[int, str]:
    """Run a sub-command to its end; return the exit code, and a sentence where it ended early."""
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"command {argv[0]} is unknown; choose one of {', '.join(COMMANDS)}")
        if argv[0] != "env":  # which tells what is wrong with them
            versions.refuse_old(UserError)
            if warning := versions.warning():
                print(f"Note: {warning}", file=sys.stderr)
        return run(argv[0], argv[1:], may_install) or 0, ""
    except UserError as error:
        return 2, refusal(error)
    except ModuleNotFoundError as error:
        return 2, refusal(f"{error.name} is not installed; pip install {error.name}")
    except BrokenPipeError:
        return 141, ""  # as a program ends by SIGPIPE
    except OSError as error:
        what, reason = error.filename or "a file", error.strerror or reason_of(error)
        return 2, refusal(f"{what} cannot be read or written ({reason}); mend that; what was whole is kept")
    except Stopped as stopped:
        return 130, str(stopped)
    except KeyboardInterrupt:
        resumed = "A training run goes on from its last checkpoint with --resume."
        return 130, f"\nStopped at once. {resumed if argv[0] == 'train' else 'The same command keeps what is whole.'}"
    except Exception as error:
        if lacks_memory(error):
            return 2, refusal(f"there is not enough memory for that ({reason_of(error)}); give a smaller size or batch")
        return UNEXPECTED, refusal(unexpected(error))


def run(name: str, argv: list[str], may_install: bool) -> int | None:
    """Run a sub-command, with what it misses installed first where that may be."""
    asked_not_to = "--no-install" in argv
    argv = [word for word in argv if word != "--no-install"]
    if name in STEPPING:
        allocator.keep_freed_memory()
    if not may_install:
        return command(name).run(argv)
    for package, why in getattr(command(name), "NEEDS", {}).items():
        if importlib.util.find_spec(package) is None:
            install(package, why, asked_not_to)
    try:
        return command(name).run(list(argv))
    except Missing as missing:
        install(missing.package, missing.why, asked_not_to)
        return command(name).run(argv)


def unexpected(error: Exception) -> str:
    """Keep the traceback of what nobody foresaw, and return a sentence that says where."""
    handle, path = tempfile.mkstemp(prefix="mla-experiments-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        traceback.print_exception(error, file=file)
    return (
        f"something that nobody foresaw ({type(error).__name__}: {reason_of(error)}); its traceback is kept in {path}: "
        "please report it, with what `mla-experiments env` prints"
    )
