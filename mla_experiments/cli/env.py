"""Say what a report of a fault needs: versions, processor, threads, backends, and what is missing."""

import importlib.util
import os
import platform
import sys
from pathlib import Path

from .. import __version__, versions
from .needs import OPTIONAL
from .parsing import parse

OTHERS = ("tokenizers", "safetensors", "huggingface_hub", "numpy", "matplotlib", "tqdm", "pyarrow")


def run(argv: list[str]) -> None:
    """Run it."""
    parse([], argv, "env", __doc__)
    print(f"mla-experiments {__version__}, Python {platform.python_version()} in {sys.prefix}")
    print(f"{platform.platform()}, {processor()}, {cores()}, {memory()}\n")
    for library in (*versions.TESTED, *OTHERS):
        print(f"{library:<18}{state(library)}")
    print()
    for module, (package, use) in OPTIONAL.items():
        found = importlib.util.find_spec(module) is not None
        print(f"{package:<18}{versions.installed(package) or 'installed' if found else f'missing: for {use}'}")
    print()
    for line in accelerator_and_backends():
        print(line)


def state(library: str) -> str:
    """Return the version of a library, and whether it is one that was tested."""
    version = versions.installed(library)
    if version is None:
        return "missing"
    if library not in versions.TESTED:
        return version
    floor, ceiling = versions.TESTED[library]
    new = versions.is_beyond(library, version)
    verdict = "too old" if versions.is_below(library, version) else "newer than tested" if new else "tested"
    return f"{version:<14}{verdict} ({floor} to {ceiling})"


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> str:
    """Return how many cores there are, and what a variable says of threads."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS")
    return f"{usable} cores" + (f", OMP_NUM_THREADS={asked}" if asked else "")


def memory() -> str:
    """Return how much memory there is."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB of memory"
    except (AttributeError, OSError, ValueError):
        return "memory unknown"


def accelerator_and_backends() -> list[str]:
    """Return lines on the accelerator and the backends of MLA's decoding, or why they cannot be told."""
    try:
        import torch

        from ..kernels import compiling, latent
        from ..modeling.devices import device_name
    except Exception as error:
        return [f"torch cannot be used: {error}"]
    lines = [f"trains and runs on: {device_name()}; torch uses {torch.get_num_threads()} threads"]
    for name, reason in latent.reasons().items():
        lines.append(f"backend {name:<12}{'usable' if reason is None else 'not usable: ' + reason}")
    lines += [f"C code of {', '.join(names)}: {origin}" for origin, names in compiling.origins().items()]
    return lines
