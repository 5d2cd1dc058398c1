"""Mechanisms from outside the package: registered by hand, announced by an installed package, or taken from a file.

    mla_experiments.register(GTA)                                   in Python
    [project.entry-points."mla_experiments.attention"]              in the pyproject.toml of a package
    gta = "their_package.gta:GTA"
    mla-experiments train --attention path/to/gta.py:GTA            on the command line, and in a study's file

Files that were named are handed on to the processes that this one starts, in the environment variable
`MLA_EXPERIMENTS_ATTENTION`. A checkpoint says where its mechanism came from, and nothing is imported because it does.
"""

import importlib.util
import inspect
import os
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from ...errors import UserError, reason_of
from ...manifest import file_hash
from .base import Attention
from .checks import require

GROUP = "mla_experiments.attention"
VARIABLE = "MLA_EXPERIMENTS_ATTENTION"
FROM_A_FILE = re.compile(r"(.+\.py):(\w+)")
NAME = re.compile(r"[a-z][a-z0-9_-]*")
OWN = __name__.split(".")[0]
FROM = f"{OWN}_from_"  # begins the names of modules that are files


def check_mechanism(mechanism: object, name: str) -> None:
    """Refuse what cannot be a mechanism, or be called so.

    Raises:
        UserError: no class, none of `Attention`, abstract methods, no description, or a name that is no identifier.
    """
    said = f"attention={name}"
    if not (inspect.isclass(mechanism) and issubclass(mechanism, Attention)):
        raise UserError(f"{said} is no class of mla_experiments.Attention, but {mechanism!r}; see docs/plugins.md")
    lacking = sorted(mechanism.__abstractmethods__)
    lacking += [what for what in ("description", "equation") if not isinstance(getattr(mechanism, what, None), str)]
    require(not lacking, f"{said}: the class {mechanism.__name__} lacks {', '.join(lacking)}; see docs/plugins.md")
    require(bool(NAME.fullmatch(name)), f"{said} is no name; choose small letters, digits, - and _, a letter first")


def class_from_file(path: Path, name: str) -> type[Attention]:
    """Return a class from a file of Python, which is run.

    Raises:
        UserError: no such file, one that does not import, or without that class.
    """
    module = _modules.get(path.resolve()) or _imported(path)
    require(hasattr(module, name), f"attention={path}:{name}: there is no {name} in that file")
    return getattr(module, name)


_modules: dict[Path, ModuleType] = {}


def check_unchanged(path: Path, module: str) -> None:
    """Refuse a file that says something else by now than what was run of it.

    Args:
        path: of the file.
        module: the name that it was run by; any other's, of a package, says nothing of its content.

    Raises:
        UserError: it was edited since.
    """
    require(
        not module.startswith(FROM) or module == _module_name(path),
        f"attention={path} was edited while this command ran by what it said before; run the command again",
    )


def _module_name(path: Path) -> str:
    return f"{FROM}{path.stem}_{file_hash(path)[:8]}"


def _imported(path: Path) -> ModuleType:
    require(path.is_file(), f"attention={path} is no file; give path/to/file.py:Class")
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # for no file that ends in .py
        raise UserError(f"attention={path} is no file of Python; give path/to/file.py:Class")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody else's file may raise
        del sys.modules[name]
        raise UserError(f"attention={path} does not import ({type(error).__name__}: {reason_of(error)})") from error
    _modules[path.resolve()] = module
    return module


def hand_on(path: Path, name: str) -> None:
    """Have the processes that this one starts find a class from a file."""
    named, own = handed_on(), f"{path.resolve()}:{name}"
    if own not in named:
        os.environ[VARIABLE] = "\n".join([*named, own])


def handed_on() -> list[str]:
    """Return the files and classes that a parent process, or the user, has named, a line each."""
    return os.environ.get(VARIABLE, "").splitlines()


def announced(name: str) -> type[Attention] | None:
    """Return the class that an installed package announces under a name, if one does.

    Raises:
        UserError: several do, or it does not import.
    """
    found = [point for point in metadata.entry_points(group=GROUP) if point.name == name]
    if not found:
        return None
    packages = sorted({point.dist.name for point in found if point.dist is not None})
    require(len(packages) == 1, f"attention={name} is announced by {' and '.join(packages)}; uninstall all but one")
    try:
        return found[0].load()
    except Exception as error:  # whatever somebody else's package may raise
        raise UserError(
            f"attention={name} of the package {packages[0]} does not import ({type(error).__name__}: "
            f"{reason_of(error)}); install it again"
        ) from error


@cache
def source_of(mechanism: type[Attention]) -> dict[str, str] | None:
    """Return where a class came from, for a checkpoint to say: a package and its version, or a file and its hash.

    None for those of this package.
    """
    top = mechanism.__module__.split(".")[0]
    if top == OWN:
        return None
    if packages := metadata.packages_distributions().get(top):
        return {"package": packages[0], "version": metadata.version(packages[0]), "class": mechanism.__qualname__}
    source = {"class": mechanism.__qualname__}
    file = inspect.getsourcefile(mechanism) if mechanism.__module__ != "__main__" else None
    return {"file": Path(file).name, "sha256": file_hash(Path(file))} | source if file else source


def how_to_get(source: dict[str, str]) -> str:
    """Return what to do for a mechanism to be there, by what a checkpoint says of where it came from."""
    if "package" in source:
        return f"it came from the package {source['package']} {source['version']}: install that"
    if "file" in source:
        return (
            f"it came from {source['file']} (sha256 {source['sha256'][:12]}): "
            f"add --attention path/to/{source['file']}:{source['class']}"
        )
    return f"it came from a class {source['class']} that was registered by hand: register it first"
