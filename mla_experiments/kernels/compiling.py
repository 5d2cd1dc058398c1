"""C code beside PyTorch on CPUs: compiled by this machine's own compiler at its first use, in about a second.

It is kept in the user's cache folder under a name that says source, compiler and processor. Where there is no
compiler, what a wheel has brought serves (`prebuilt.py`), else PyTorch alone; `mla-experiments kernels` says which.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from . import prebuilt
from .prebuilt import FLAGS


class CannotCompile(RuntimeError):  # noqa: N818 - says what it is
    """There is no compiler here, or it does not compile the source; the message is one line."""


@cache
def library(name: str) -> ctypes.CDLL | CannotCompile:
    """Return the compiled `NAME.c` of this folder, made here or in the wheel, or why there is none."""
    try:
        return compiled(name)
    except CannotCompile as error:
        path = prebuilt.best(name)
        if path is None:
            return error
        try:
            return ctypes.CDLL(str(path))
        except OSError as refused:
            return CannotCompile(f"{error}; {path} came with the package and cannot be loaded ({refused})")


def origins() -> dict[str, list[str]]:
    """Return where the C code comes from, or why there is none, each with the names of the sources it holds for."""
    found: dict[str, list[str]] = {}
    for name in prebuilt.names():
        found.setdefault(_origin(library(name)), []).append(name)
    return found


def _origin(found: ctypes.CDLL | CannotCompile) -> str:
    if isinstance(found, CannotCompile):
        return f"none ({found})"
    path = Path(found._name)
    if path.parent == prebuilt.FOLDER:
        return f"prebuilt, for {prebuilt.level_of(path)}"
    return "compiled on this machine"


def loaded(name: str) -> ctypes.CDLL:
    """Return the compiled `NAME.c` of this folder, where somebody has asked before whether there is one.

    Raises:
        CannotCompile: there is none.
    """
    found = library(name)
    if isinstance(found, CannotCompile):
        raise found
    return found


def compiled(name: str, march: str = "native", folder: Path | None = None) -> ctypes.CDLL:
    """Return `NAME.c` of this folder as a library.

    Args:
        name: of the source.
        march: processor to compile for, as the compiler's `-march` names it; "native" is this machine's.
        folder: where the library is kept; by default the user's cache folder.

    Raises:
        CannotCompile: see there.
    """
    source = prebuilt.SOURCES / f"{name}.c"
    compiler = prebuilt.compiler()
    if platform.system() != "Linux" or compiler is None:
        raise CannotCompile("needs Linux and a C compiler, such as gcc")
    macros = _run(compiler, f"-march={march}", "-dM", "-E", "-x", "c", os.devnull)  # say compiler and processor
    content = "\0".join((prebuilt.text_of(name), macros, *FLAGS))
    if folder is None:
        folder = cache_folder()
    path = folder / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
    try:
        if not path.is_file():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                product = Path(scratch) / path.name
                _run(compiler, f"-march={march}", *FLAGS, str(source), "-o", str(product))
                product.replace(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotCompile(f"{path} cannot be written and loaded ({error.strerror or error})") from None


def cache_folder() -> Path:
    """Return where this package keeps what it has made once: below XDG_CACHE_HOME, or ~/.cache.

    Where there is no home, or none that can be written to, it is a folder of one's own among temporary files.

    Raises:
        CannotCompile: that one cannot be made, is another's, or is open to others, who could put code there.
    """
    with contextlib.suppress(RuntimeError, OSError):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mla-experiments"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    own = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"mla-experiments-{own}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise CannotCompile(f"{folder} cannot be made ({error.strerror}); set XDG_CACHE_HOME to a folder") from None
    if hasattr(os, "getuid") and (found.st_uid != own or found.st_mode & 0o022 or folder.is_symlink()):
        raise CannotCompile(f"{folder} is not this account's alone; set XDG_CACHE_HOME to a folder that is")
    return folder


def _run(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout
    except subprocess.CalledProcessError as error:
        raise CannotCompile(f"{argv[0]} fails: {(error.stderr.strip() or 'no reason given').splitlines()[0]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{argv[0]} does not run ({error})") from None
