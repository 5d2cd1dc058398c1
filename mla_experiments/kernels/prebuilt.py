"""C code that comes compiled, in wheels, for machines without a compiler.

A wheel has each `NAME.c` for several levels of instructions, in the folder `prebuilt`, under names that say of which
sources: others never meet it. None of the files asks for an OpenMP: they find the one that torch has loaded for all,
since a second one would fight it for the cores.
Imports nothing of this package: `hatch_build.py` reads this file alone.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
FOLDER = SOURCES / "prebuilt"
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")

_V3 = {"avx2", "f16c", "fma", "bmi1", "bmi2", "abm", "movbe"}  # as /proc/cpuinfo calls them
_V4 = {*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
Levels = dict[str, tuple[tuple[str, ...], set[str]]]  # the compiler's options, the instructions that must be there
LEVELS: dict[str, Levels] = {  # by kind of processor, the best level first
    "x86_64": {
        "x86-64-v4-vnni": (("-march=x86-64-v4", "-mavx512vnni"), {*_V4, "avx512_vnni"}),
        "x86-64-v4": (("-march=x86-64-v4",), _V4),
        "x86-64-v3": (("-march=x86-64-v3",), _V3),
    },
    "aarch64": {"armv8-a": (("-march=armv8-a",), {"asimd"})},  # the sources use nothing that later ones have
}


def compiler() -> str | None:
    """Return the C compiler of this machine, if there is one."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


def names() -> list[str]:
    """Return the names of all sources."""
    return sorted(path.stem for path in SOURCES.glob("*.c"))


def text_of(name: str) -> str:
    """Return what `NAME.c` is made of: the file and all headers."""
    paths = (SOURCES / f"{name}.c", *sorted(SOURCES.glob("*.h")))
    return "\0".join(path.read_text(encoding="utf-8") for path in paths)


def levels() -> Levels:
    """Return the levels of this kind of processor, see `LEVELS`."""
    return LEVELS.get(platform.machine(), {}) if platform.system() == "Linux" else {}


def path_of(name: str, level: str) -> Path:
    """Return where `NAME.c` for a level lies, if a wheel has brought it."""
    content = "\0".join((text_of(name), *levels()[level][0], *FLAGS))
    return FOLDER / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}-{level}.so"


def build(name: str, level: str, command: str, folder: Path) -> Path:
    """Compile `NAME.c` for a level into a folder, and return the file.

    It is linked in a step of its own, which names no OpenMP: a compiler that knows of it would have its own loaded.

    Raises:
        OSError: the compiler does not run.
        subprocess.CalledProcessError: it fails.
    """
    source, product = SOURCES / f"{name}.c", folder / path_of(name, level).name
    half = product.with_suffix(".o")
    compiling = [command, *FLAGS, *levels()[level][0], "-c", str(source), "-o", str(half)]
    for argv in (compiling, [command, "-shared", "-s", str(half), "-o", str(product)]):
        subprocess.run(argv, check=True, capture_output=True, text=True)
    return product


def level_of(path: Path) -> str:
    """Return the level in the name of a file."""
    return path.stem.split("-", 2)[2]


def instructions(info: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return what this processor can do."""
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    stated = (line.partition(":") for line in lines)
    return next((set(words.split()) for title, _, words in stated if title.strip() in ("flags", "Features")), set())


def best(name: str) -> Path | None:
    """Return `NAME.c` for the best level that this processor has; None where no such file came along."""
    able = instructions()
    paths = (path_of(name, level) for level, (_, needed) in levels().items() if needed <= able)
    return next((path for path in paths if path.is_file()), None)
