"""Run what depends most on other people's versions, at both ends of their range: `make test-versions`.

Each environment is made beside this repository's own, with uv if it is there, and kept. torch is that of
`constraints.txt` in all of them, unless another is asked for: other builds bring gigabytes.

    python tests/versions.py                      # oldest, constraints, newest: all suites
    python tests/versions.py --quick              # what two faults of the past would have failed, at both ends
    python tests/versions.py --beyond             # also what pip gives without ceilings; fails nothing
    python tests/versions.py --torch 2.14.1       # with another torch
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from mla_experiments.markdown import table  # noqa: E402 - of this clone
from mla_experiments.versions import TESTED, bounds  # noqa: E402

FOLDER = REPOSITORY / ".venv-versions"
OTHERS = (
    "tokenizers",
    "safetensors",
    "matplotlib",
    "numpy",
    "tqdm",
    "jinja2",
    "scipy",
    "plotly",
    "pytest",
    "hypothesis",
)
WRAPPERS = ("peft", "torchao", "bitsandbytes", "optimum-quanto")  # what people put around a model, in their newest
SUITES = {
    "contract": ["tests/contract"],
    "generation": ["tests/modeling/test_decode_modes.py", "tests/modeling/test_citizen.py"],
    "caches": ["tests/modeling/test_cache.py", "tests/modeling/test_self_check.py"],
    "training, resume": ["tests/training/test_run.py", "tests/training/test_distributed.py"],
    "export, import": ["tests/modeling/test_conversion.py"],
}
QUICK = {
    "generation": ["tests/modeling/test_citizen.py", "-k", "generation_writes or either_name or deprecated"],
    "two processes": ["tests/training/test_distributed.py", "-k", "two_processes_equal_one"],
}
WRITE = """
import torch
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
for attention in ("mha", "gqa", "mqa", "mla"):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = DecoderForCausalLM(DecoderConfig(**sizes, attention=attention, initializer_range=0.3)).eval()
    written = model.generate(torch.tensor([[5, 17, 31]]), max_new_tokens=5, do_sample=False)[0, 3:]
    print(attention, *written.tolist(), end="; ")
"""


def requirements(name: str, torch: str) -> list[str]:
    """Return what pip is to install into an environment."""
    common = [f"torch=={torch}", *OTHERS]
    libraries = [library for library in TESTED if library != "torch"]
    if name == "oldest":
        return [*common, *(f"{library}=={TESTED[library][0]}.*" for library in libraries)]
    if name == "constraints":
        return [*common, *libraries, "-c", str(REPOSITORY / "constraints.txt")]
    if name == "newest":
        return [*common, *(f"{library}{bounds(library)}" for library in libraries), *WRAPPERS]
    return [*common, *libraries]  # beyond


def environment(name: str, torch: str) -> Path:
    """Return the Python of an environment, made anew where what it holds is not what is asked for."""
    folder, wanted = FOLDER / name, requirements(name, torch)
    python, stated = folder / "bin" / "python", folder / "requirements.txt"
    if stated.is_file() and stated.read_text(encoding="utf-8").splitlines() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        links = {"UV_COMPILE_BYTECODE": "1"}  # as pip does: else each process compiles the libraries anew
        if "PIP_FIND_LINKS" in os.environ:
            links["UV_FIND_LINKS"] = os.environ["PIP_FIND_LINKS"]
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*install, *wanted], check=True, env={**os.environ, **links})
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
    stated.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python


def counts(python: Path, suite: list[str]) -> str:
    """Return how many tests of a suite passed or not, as pytest says it, or that it ended in an error."""
    command = [str(python), "-m", "pytest", "--quiet", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *suite], cwd=REPOSITORY, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or ["nothing was said"])[-1]
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        last = last if "failed" in last or "error" in last else f"error {done.returncode}: {last}"
    return re.sub(r",? \d+ (warnings?|deselected)|(?<=s)econds| in .*", "", last)


def written(python: Path) -> str:
    """Return what small models of each mechanism write at temperature 0."""
    done = subprocess.run([str(python), "-c", WRITE], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip("; ") or f"nothing ({done.stderr.strip().splitlines()[-1]})"


def versions_in(python: Path) -> str:
    """Return the versions of an environment."""
    code = (
        f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {list(TESTED)}), sep=', ')"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def tried(torch: str, suites: dict[str, list[str]], name: str) -> dict[str, str]:
    """Return the row of an environment in the table, and print it."""
    python = environment(name, torch)
    found = {suite: counts(python, tests) for suite, tests in suites.items()}
    row = {"environment": f"{name}: {versions_in(python)}", **found, "writes": written(python)}
    print(table([row]), flush=True)
    return row


def main() -> int:
    """Print a table of environments and suites, and return 1 where one within the range fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small suites, at both ends alone")
    parser.add_argument("--beyond", action="store_true", help="also what pip gives without ceilings")
    parser.add_argument("--torch", help="version of torch, by default that of constraints.txt")
    given = parser.parse_args()
    pinned = re.search(r"^torch==(\S+)", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.M)
    names = ["oldest", "newest"] if given.quick else ["oldest", "constraints", "newest"]
    suites, begun = QUICK if given.quick else SUITES, time.monotonic()
    with ThreadPoolExecutor(max_workers=2) as pool:  # what a test does is for one core, but for a second here and there
        rows = list(pool.map(partial(tried, given.torch or pinned[1], suites), names + ["beyond"] * given.beyond))
    print("\n" + table(rows))
    within = [row for row in rows if not row["environment"].startswith("beyond")]
    said = [row[suite] for row in within for suite in suites]
    bad = [re.findall(r"(\d+) (?:failed|errors?)", one) for one in said if "failed" in one or "error" in one]
    failed = sum(max(1, sum(map(int, numbers))) for numbers in bad) + (len({row["writes"] for row in within}) > 1)
    passed = sum(int(number) for one in said for number in re.findall(r"(\d+) passed", one))
    print(f"{'FAILED: ' * bool(failed)}{passed} passed, {failed} failed in {time.monotonic() - begun:.0f}s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
