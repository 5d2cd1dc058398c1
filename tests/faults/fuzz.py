"""Type what nobody should, into files too: every command must work, or refuse in one sentence and change nothing else.

    python tests/faults/fuzz.py --cases 2000 --seed 0

Command lines over all sub-commands and flags, with values that make sense, borderline ones and absurd ones, run on
files that are whole, damaged, or of quite another kind. A case ends well with 0, 2, 130, or 1 for a failed run of a
study; with at most one sentence of error, on one line, and no traceback; within its time; having opened no connection,
written nothing outside its folder, and left nothing in the folder for temporary files. Any other is a find: it is made
smaller as long as it stays one, and shown.
"""

import argparse
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PLACE = tempfile.TemporaryDirectory(prefix="fuzz-")
ROOT = Path(PLACE.name).resolve()
SCRATCH, TEMPORARY = ROOT / "case" / "work", ROOT / "case" / "tmp"
# before anything is imported, much of which looks for a place to keep things in
os.environ.update(HOME=str(ROOT / "home"), HF_HOME=str(ROOT / "home/hf"), XDG_CACHE_HOME=str(ROOT / "home/.cache"))
os.environ.update(MLA_EXPERIMENTS_NO_INSTALL="1", HF_HUB_OFFLINE="1")
sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import hypothesis  # noqa: E402 - once home is elsewhere
import lm_eval.evaluator  # noqa: E402, F401 - else every fork would import it anew
from faults import drawn, forked  # noqa: E402
from faults.playground import build  # noqa: E402
from hypothesis import strategies  # noqa: E402

SECONDS = 90  # for a case, on a busy machine
MEMORY = 3 * 2**30  # bytes that a case may take beyond what is there at its start
WELL = (0, 2, 130)
WRITES = {  # event of Python's audit: how many of its arguments are paths that change
    "open": 1, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "shutil.rmtree": 1, "os.truncate": 1, "os.rename": 2,
}  # fmt: skip


def main() -> int:
    """Report what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases to run, in place of all")
    given = parser.parse_args()
    pristine = build(ROOT / "pristine")
    counts, finds = fuzz(pristine, given.cases, given.seed, set(given.only or range(given.cases)))
    for (command, ended), number in sorted(counts.items()):
        print(f"{command}, {ended}: {number}")
    print(f"tried: {counts.total()}, found: {len(finds)}")
    return int(bool(finds))


def fuzz(pristine: dict[str, bytes], cases: int, seed: int, only: set[int]) -> tuple[Counter, list]:
    """Return how often each command ended how, and the finds; each is printed as it is found, made smaller."""
    counts, finds, number = Counter(), [], iter(range(cases + 1))

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(strategies.randoms(use_true_random=True).map(lambda chosen: drawn.case(chosen, pristine)))
    def check(case):
        if (place := next(number)) not in only:
            return
        code, found = outcome(case)
        if found:
            finds.append(show(place, smaller(case, found)))
        name = case.argv[0] if case.argv and case.argv[0] in drawn.SHARES else "no command"
        counts[name, "FOUND" if found else f"ends with {code}"] += 1
        if counts.total() % 100 == 0:
            print(f"{counts.total()} tried, {len(finds)} found", flush=True)

    check()
    return counts, finds


def outcome(case: drawn.Case) -> tuple[int, str]:
    """Run a case; return its exit code, and what is wrong with it: "" is nothing."""
    shutil.rmtree(ROOT / "case", ignore_errors=True)
    shutil.copytree(ROOT / "pristine", SCRATCH, symlinks=True)
    TEMPORARY.mkdir()
    for name, content in case.files.items():
        (SCRATCH / name).unlink(missing_ok=True)
        if content is not None:
            (SCRATCH / name).write_bytes(content)
    ended = run(list(case.argv))
    return ended.code, fault(ended, case.argv[0] if case.argv else "")


def run(argv: list[str]) -> forked.Ended:
    """Run a command line in a fork of this process, with less memory and time than there is."""
    log = ROOT / "case" / "log.txt"
    child = forked.start(argv, SCRATCH, log, confine)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        code = -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return forked.Ended(code, log.read_text(encoding="utf-8", errors="replace"))


def confine() -> None:
    """Limit what this process may take, and have it say where it reaches out or writes outside its folder."""
    os.setpgid(0, 0)
    del sys.modules["__main__"].__file__  # processes that are spawned need not import this file
    tempfile.tempdir = str(TEMPORARY)
    os.environ["TMPDIR"] = str(TEMPORARY)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(watch)


def watch(event: str, arguments: tuple) -> None:
    """Say what is done outside the case's folder, where what is kept for later is allowed: an audit hook."""
    if event in ("socket.connect", "socket.getaddrinfo"):
        os.write(2, f"\nREACHED OUT: {arguments[1:] if event == 'socket.connect' else arguments[0]}\n".encode())
    reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
    for path in arguments[: WRITES.get(event, 0)] if not reads else ():
        if isinstance(path, str | bytes | os.PathLike):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((str(ROOT / "case"), str(ROOT / "home"), "/dev/", "/proc/")):
                os.write(2, f"\nWROTE OUTSIDE: {event} {real!r}\n".encode("utf-8", "replace"))


def fault(ended: forked.Ended, command: str) -> str:
    """Return what is wrong with how a case ended, or ""."""
    said, lines = ended.said, [line for line in ended.said.splitlines() if line.strip()]
    errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    if ended.code == 70:
        kept = [path.read_text(errors="replace") for path in TEMPORARY.glob("mla-experiments-*.txt")]
        return f"nobody foresaw it\n{''.join(kept) or said[-3000:]}"
    if ended.code not in ((0, 1, 2, 130) if command == "study" else WELL):
        return f"ends with {ended.code}\n{said[-3000:]}"
    for mark in ("Traceback (most recent", "REACHED OUT", "WROTE OUTSIDE", "Exception ignored in"):
        if mark in said:
            return f"{mark}\n{said[said.index(mark) - 500 if said.index(mark) > 500 else 0 :][:3000]}"
    if ended.code == 2 and (len(errors) != 1 or errors[0] != len(lines) - 1):
        return f"not one sentence\n{said[-3000:]}"
    if ended.code == 0 and errors:
        return f"an error, but no exit code\n{said[-3000:]}"
    if left := [path.name for path in TEMPORARY.iterdir()]:
        return f"leaves temporary files\n{left}"
    if others := [path.name for path in (ROOT / "case").iterdir() if path.name not in ("work", "tmp", "log.txt")]:
        return f"writes beside its folder\n{others}"
    return ""


def kind(found: str) -> tuple[str, str]:
    """Return what makes two finds the same: how they ended, and the last line of what was raised."""
    last = next((line for line in reversed(found.splitlines()) if line[:1].isalpha()), "")
    return found.splitlines()[0], last.split(":")[0]


def smaller(case: drawn.Case, found: str) -> tuple[drawn.Case, str]:
    """Return the smallest case at hand that ends as badly, after some trials."""
    tried, progress = 0, True
    patience = 4 if found.startswith("ends with -") else 40
    while progress:
        progress = False
        for candidate in reductions(case):
            if tried == patience:
                return case, found
            tried += 1
            _, again = outcome(candidate)
            if again and kind(again) == kind(found):
                case, found, progress = candidate, again, True
                break
    return case, found


def reductions(case: drawn.Case):
    """Yield cases with less: without a file's change, without words, with half of a content."""
    for name in case.files:
        yield drawn.Case(case.argv, {other: content for other, content in case.files.items() if other != name})
    for width in (2, 1):
        for place in range(len(case.argv) - 1, 0, -1):
            yield drawn.Case(case.argv[:place] + case.argv[place + width :], case.files)
    for name, content in case.files.items():
        half = len(content or b"") // 2
        for part in (content[:half], content[half:]) if half > 4 else ():
            yield drawn.Case(case.argv, {**case.files, name: part})


def show(place: int, made: tuple[drawn.Case, str]) -> str:
    """Print a find and return it."""
    case, found = made
    files = {name: content if content is None else content[:300] for name, content in case.files.items()}
    shown = f"\nFOUND in case {place}: {list(case.argv)} with {files}\n{found}\n"
    print(shown.encode("utf-8", "backslashreplace").decode(), flush=True)
    return shown


if __name__ == "__main__":
    sys.exit(main())
