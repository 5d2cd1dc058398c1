"""Run what depends on the libraries at both ends of their tested versions, each end in an environment of its own.

Environments are made under `.venv-versions/` (by uv where there is one, else by venv and pip) and used again:

    floors       the oldest versions that pyproject.toml admits
    constraints  constraints.txt
    newest       the newest that pyproject.toml admits
    beyond       with --beyond: what the package index has, beyond the ceilings too; reported, fails nothing

Prints environments by suites, as passed/failed/skipped, and what a tiny model writes at temperature 0 in each. Exit
code 1 if anything fails inside the range.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENTS = REPOSITORY / ".venv-versions"
TOOLS = ["pytest", "pytest-xdist", "hypothesis"]
FOLLOWING = ("tokenizers", "huggingface_hub", "safetensors")  # as transformers of that version asks for them
SUITES = {
    "contract": ["tests/contract"],
    "generation": [f"tests/modeling/test_{name}.py" for name in ("decode_modes", "cache", "interoperability")],
    "training": ["tests/training/test_run.py"],
    "two processes": ["tests/training/test_distributed.py", "tests/training/test_streamed.py", "-k", "process"],
    "export, import": [f"tests/modeling/test_{name}.py" for name in ("conversion", "stock_fields", "oracles")],
}
QUICK = {  # what would have caught a renamed argument of the cache, and a resume that torch could not load
    "generation": ["tests/contract/test_attention_contract.py", "-k", "generates"],
    "two processes": ["tests/training/test_distributed.py", "-k", "resumes"],
}


def dependencies() -> dict[str, str]:
    """Return what the package depends on: the versions that pyproject.toml admits, by library."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in project["dependencies"])


def pins() -> dict[str, str]:
    """Return the versions in constraints.txt, by library."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(re.match(r"([\w-]+)==([^ ]+)", line).groups() for line in lines if "==" in line)


def requirements(name: str, torch: str) -> list[str]:
    """Return what to install into an environment.

    Args:
        name: of the environment.
        torch: "constraints" takes that of constraints.txt everywhere, "own" that of the environment.
    """
    admitted, pinned = dependencies(), pins()
    floors = {library: bounds[2:].split(",")[0] for library, bounds in admitted.items() if bounds.startswith(">=")}
    wanted = {
        "floors": {library: "==" + floors.get(library, pinned[library]) for library in admitted},
        "constraints": {library: f"=={pinned[library]}" for library in admitted},
        "newest": admitted,
        "beyond": dict.fromkeys(admitted, ""),
    }[name]
    if name == "floors":
        wanted |= dict.fromkeys(FOLLOWING, "")
    if torch == "constraints":
        wanted["torch"] = f"=={pinned['torch']}"
    return [library + bounds for library, bounds in wanted.items()] + TOOLS


def environment(name: str, torch: str) -> Path:
    """Make an environment, or bring one up to date, and return its Python."""
    folder, wanted = ENVIRONMENTS / name, requirements(name, torch)
    python = folder / "bin" / "python"
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    upgrade = ["--upgrade"] if name in ("newest", "beyond") else []
    print(f"{name}: {' '.join(wanted)}", flush=True)
    if not python.is_file():
        subprocess.run([uv, "venv", "-q", "-p", sys.executable, folder] if uv else
                       [sys.executable, "-m", "venv", folder], check=True)  # fmt: skip
    installer = [uv, "pip", "install", "-p", python] if uv else [python, "-m", "pip", "install"]
    links = ",".join(os.environ.get("PIP_FIND_LINKS", "").split())
    subprocess.run([*installer, "-q", *upgrade, *wanted], check=True,
                   env=os.environ | ({"UV_FIND_LINKS": links} if links else {}))  # fmt: skip
    return python


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python of an environment on this clone, one thread a process."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([python, *arguments], cwd=REPOSITORY, env=environ, capture_output=True, text=True)


def counts(python: Path, name: str, suite: str, selected: list[str]) -> tuple[str, bool]:
    """Run a suite; return passed/failed/skipped, and whether it succeeded. What it printed is kept beside it."""
    done = run(python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--tb=short", *selected)
    log = ENVIRONMENTS / f"{name}, {suite}.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    last = done.stdout.strip().rpartition("\n")[2]
    found = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    if done.returncode:
        print(f"{name}, {suite} failed: see {log}", flush=True)
    failed = found.get("failed", 0) + found.get("error", 0)
    return f"{found.get('passed', 0)}/{failed}/{found.get('skipped', 0)}", done.returncode == 0


def write() -> None:
    """Print the versions here, and what every mechanism writes at temperature 0 with a cache and without one."""
    from importlib import metadata

    import torch

    from mla_experiments import DecoderConfig, DecoderForCausalLM
    from mla_experiments.modeling.attention import ATTENTION

    print(*(metadata.version(library) for library in ("torch", "transformers", "accelerate", "datasets")), sep="|")
    for attention in ("mha", "gqa", "mqa", "mla"):
        assert attention in ATTENTION
        config = DecoderConfig(vocab_size=26, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                               max_position_embeddings=64, attention=attention)  # fmt: skip
        model, numbers = DecoderForCausalLM(config).double().eval(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, weight in sorted(model.named_parameters()):
                weight.copy_(torch.randn(weight.shape, generator=numbers) * 0.5)
        for use_cache in (True, False):
            written = model.generate(torch.tensor([[0, 1, 2, 3]]), max_new_tokens=10, do_sample=False, pad_token_id=0,
                                     use_cache=use_cache)[0, 4:]  # fmt: skip
            print("".join(chr(ord("a") + token) for token in written.tolist()))


def examine(name: str, arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """Run the suites in an environment; return its line of the table, and whether all of it succeeded."""
    python = environment(name, arguments.torch)
    results = [counts(python, name, *suite) for suite in (QUICK if arguments.quick else SUITES).items()]
    done = run(python, __file__, "--write")
    versions, *texts = done.stdout.split() or [done.stderr.strip().rpartition("\n")[2]]
    right = done.returncode == 0 and texts[::2] == texts[1::2]
    line = [name, *(versions.split("|") + [""] * 4)[:4], *(cell for cell, _ in results), " ".join(texts[::2])]
    return line + ["" if right else "with a cache it writes something else"], right and all(ok for _, ok in results)


def main() -> int:
    """Examine every environment, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="floors and newest, a few tests of each")
    parser.add_argument("--beyond", action="store_true", help="also what lies beyond the ceilings")
    parser.add_argument("--torch", choices=("constraints", "own"), default="constraints",
                        help="torch of constraints.txt in every environment (default), or the environment's own: on "
                        "Linux each is a CUDA build of gigabytes")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="only print versions and text of this very Python")
    arguments = parser.parse_args()
    if arguments.write:
        write()
        return 0
    names = ["floors", *([] if arguments.quick else ["constraints"]), "newest", *["beyond"] * arguments.beyond]
    lines = {name: examine(name, arguments) for name in names}
    suites = QUICK if arguments.quick else SUITES
    table = [["", "torch", "transformers", "accelerate", "datasets", *suites, "writes (mha, gqa, mqa, mla)", ""]]
    table += [line for line, _ in lines.values()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(*("  ".join(map(str.ljust, line, widths)).rstrip() for line in table), sep="\n")
    same = len({line[-2] for name, (line, _) in lines.items() if name != "beyond"}) == 1
    return 0 if same and all(right for name, (_, right) in lines.items() if name != "beyond") else 1


if __name__ == "__main__":
    sys.exit(main())
