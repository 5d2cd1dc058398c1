"""Do the tests notice when the code is changed? `make test-mutants`, or `python tests/mutants.py --count 40 --seed 1`.

Draws mutants (comparisons, arithmetic, constants, conditions, loops, decorators: cosmic-ray's operators) from the parts
on which results rest, and runs the tests of each one's own part on it, in a copy of the tree. A mutant that they do not
notice is printed as a diff. Those that compute the same are written down in `EQUIVALENT`, with why. Minutes a mutant.
"""

import argparse
import ast
import contextlib
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkResult

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 900  # seconds for the tests of a part, on a busy machine
PARTS = {  # files of the package, and the tests that are theirs
    "attention": ("modeling/attention/*.py", "tests/contract tests/modeling"),
    "caches": ("modeling/cache*.py", "tests/modeling/test_cache*.py tests/modeling/test_windows.py tests/contract"),
    "conversion": ("conversion/*.py", "tests/conversion"),
    "packing": ("data/packing.py", "tests/data/test_packing.py"),
    "evaluation": ("evaluation/*.py", "tests/evaluation"),
    "statistics": (
        "study/statistics.py study/tuned.py study/halving.py study/tuning.py",
        "tests/study/test_statistics.py tests/study/test_runner.py",
    ),
    "matching": ("study/matching.py", "tests/study/test_matching.py tests/study/test_runner.py"),
    "identity": ("training/identity.py", "tests/training/test_identity.py tests/training/test_flags.py"),
}
EQUIVALENT: dict[str, str] = {}  # the line as it is changed, stripped: why nothing can be noticed


def annotations(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where the types of a file stand, of which nothing is computed."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        found += [((note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)) for note in notes if note]
    return found


def named(patterns: str, folder: str) -> list[Path]:
    """Return the files that patterns name below a folder."""
    return sorted(path for pattern in patterns.split() for path in Path(folder).glob(pattern))


def mutants_of(files: str, scratch: Path) -> list[MutationSpec]:
    """Return all mutants of a part."""
    paths = named(files, "mla_experiments")
    with use_db(str(scratch / "mutants.sqlite"), WorkDB.Mode.create) as db:
        init(paths, db, {})
        every = [item.mutations[0] for item in db.work_items]
    types = {str(path): annotations(path) for path in paths}
    return [one for one in every if not any(begin <= one.start_pos < end for begin, end in types[str(one.module_path)])]


def told(part: str, mutant: MutationSpec, result: WorkResult) -> str:
    """Print what came of a mutant, and return it in a word."""
    changed = [
        line for line in (result.diff or "").splitlines() if line[:1] in ("+", "-") and line[1:2] not in ("+", "-")
    ]
    known = next((why for line in changed if (why := EQUIVALENT.get(line[1:].strip()))), "")
    outcome = result.test_outcome.value if result.test_outcome else "not made"
    outcome = "equivalent" if known and outcome == TestOutcome.SURVIVED.value else outcome
    print(f"{part}: {outcome}: {mutant.module_path}:{mutant.start_pos[0]} {known}", flush=True)
    if outcome == TestOutcome.SURVIVED.value:
        print(*changed, sep="\n", flush=True)
    return outcome


def main() -> int:
    """Draw, test, and say what was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="mutants, shared out over the parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    given = parser.parse_args()
    came = Counter()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        copied = Path(scratch) / "tree"
        shutil.copytree(REPOSITORY, copied, ignore=shutil.ignore_patterns(".*", "studies", "weights", "site"))
        with contextlib.chdir(copied):
            drawn = random.Random(given.seed)
            for part in given.parts:
                files, tests = PARTS[part]
                command = (
                    f"{sys.executable} -m pytest -x -q -p no:cacheprovider {' '.join(map(str, named(tests, '.')))}"
                )
                if run_tests(command, PATIENCE)[0] is not TestOutcome.SURVIVED:
                    sys.exit(f"{tests} fail on the code as it is, so that they say nothing of mutants")
                for mutant in drawn.sample(mutants_of(files, Path(scratch)), -(-given.count // len(given.parts))):
                    result = mutate_and_test([mutant], command, PATIENCE)
                    came[told(part, mutant, result)] += 1
    print(", ".join(f"{count} {outcome}" for outcome, count in came.items()))
    return 1 if came[TestOutcome.SURVIVED.value] else 0


if __name__ == "__main__":
    sys.exit(main())
