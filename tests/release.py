"""Build what is released and use it as a stranger does: `make test-release`.

The source archive and the wheel are made and checked. The wheel alone then goes into an environment of its own, and in
an empty folder, without this clone and without a compiler, it runs the command of `docs/tutorial.md` on a small text,
writes with a model of that, and exports it. The study is cut to seconds as the tutorial says: by editing its file.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from conftest import REPOSITORY, synthetic_articles

EXTRAS = "sample,study"  # as the tutorial installs them
TOOLS = ("build", "hatchling", "twine", "check-wheel-contents")


def environment(folder: Path, *wanted: str) -> Path:
    """Make an environment with what is wanted, by uv if it is there; return the folder of its commands."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    else:
        links = {}
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [folder / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*install, *wanted], check=True, env={**os.environ, **links})
    return folder / "bin"


def built(tools: Path, folder: Path) -> Path:
    """Build and check the source archive, and the wheel of it; return the wheel."""
    subprocess.run([tools / "python", "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY], check=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    subprocess.run([tools / "twine", "check", "--strict", source, wheel], check=True)
    subprocess.run([tools / "check-wheel-contents", wheel], check=True, cwd=REPOSITORY)
    return wheel


def question() -> list[str]:
    """Return the tutorial's command, of a model small enough for a small text."""
    tutorial = (REPOSITORY / "docs/tutorial.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    (mla-experiments choose notes\.txt .*)$", tutorial, re.MULTILINE)
    return [*shlex.split(re.sub(r"--params \S+", "--params 150k", command)), "--no-browser"]


def shorten(study: Path) -> None:
    """Edit a study so that it takes seconds."""
    text = study.read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]  # they say which question it is for
    stated = yaml.safe_load(text) | {"attention": ["mha", "mla"], "train_tokens": 8192, "warmup_tokens": 0}
    del stated["tuning"]
    study.write_text("\n".join([*comments, yaml.safe_dump(stated)]), encoding="utf-8")


def use(commands: Path, folder: Path, comes_compiled: bool) -> None:
    """Do as the tutorial does, with nothing else at hand."""
    (folder / "home").mkdir(parents=True)
    (folder / "notes.txt").write_text("\n\n".join(synthetic_articles(400)), encoding="utf-8")
    alone = {"PATH": str(commands), "HOME": str(folder / "home"), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        print("$", *command, flush=True)
        done = subprocess.run(command, cwd=folder, env=alone, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, flush=True)
        return done.stdout

    prebuilt = re.search(r"^C code of .*linear.*: prebuilt", run("mla-experiments", "env"), re.MULTILINE)
    assert bool(prebuilt) is comes_compiled, "which C code is used?"
    asked = question()
    run(*asked, "--plan-only")
    shorten(folder / "studies" / "choose-notes.yaml")
    assert "At 1,024 bytes of cache a token, take" in run(*asked)
    assert (folder / "studies" / "choose-notes" / "report.html").is_file()
    model = str(next(folder.glob("studies/runs/mla-*")))
    written = run("mla-experiments", "generate", model, "--prompt", "the river", "--max_new_tokens", "20")
    assert written.startswith("the river") and len(written) > len("the river ")
    run("mla-experiments", "export", model, "--to", "hf", "exported")
    config = json.loads((folder / "exported" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]


def main() -> None:
    """Do all of it in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        wheel = built(environment(place / "tools", *TOOLS), place / "dist")
        pinned = ["--constraint", str(REPOSITORY / "constraints.txt")]
        commands = environment(place / "environment", *pinned, f"{wheel}[{EXTRAS}]")
        use(commands, place / "empty", comes_compiled=not wheel.name.endswith("-any.whl"))
        print(f"{wheel.name} does what the tutorial says.")


if __name__ == "__main__":
    main()
