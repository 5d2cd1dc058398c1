"""Which files decide what a mechanism from outside computes: its own, and those that it imports, libraries apart."""

import ast
import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path

from ..versions import TESTED

OURS = __name__.partition(".")[0]
INSTALLED = {"site-packages", "dist-packages"}  # folders of what is installed, and not to be edited


def imported_files(path: Path, module: str) -> dict[str, Path]:
    """Return the files that a mechanism's file imports, and what these import, by the names of their modules.

    Of installed libraries its own package alone counts: the versions of others are recorded, or do not matter. What is
    installed to be edited (`pip install -e`) is none of them.

    Args:
        path: of the mechanism's file.
        module: its name, as the class knows it.
    """
    own, found = module.partition(".")[0], dict[str, Path]()
    left = [(path, getattr(sys.modules.get(module), "__package__", None) or "")]
    while left:
        for name in imports_of(*left.pop()):
            top = name.partition(".")[0]
            if name in found or top in (OURS, *sys.stdlib_module_names, *TESTED):
                continue
            spec = spec_of(name)
            if spec is None or not (spec.origin or "").endswith(".py") or (file := Path(str(spec.origin))) == path:
                continue
            if top != own and INSTALLED & {*file.parts}:
                continue
            found[name] = file
            left.append((file, name if spec.submodule_search_locations else name.rpartition(".")[0]))
    return found


def imports_of(path: Path, package: str) -> Iterator[str]:
    """Yield the names of the modules that a file imports, among others that may be one.

    Args:
        path: of the file.
        package: that it is in, from which relative names count.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names for name in with_packages(alias.name))
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # what it imports in vain
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                yield from (*with_packages(base), *(f"{base}.{alias.name}" for alias in node.names))


def with_packages(name: str) -> Iterator[str]:
    """Yield the names of the packages that a module is in, whose own code is run before it, and its name."""
    return accumulate(name.split("."), "{}.{}".format)


def spec_of(name: str) -> ModuleSpec | None:
    """Return where a module is; None for what is none, as most of what `from module import name` names."""
    try:
        return importlib.util.find_spec(name)
    except Exception:  # whatever the packages around it raise when they are imported
        return None
