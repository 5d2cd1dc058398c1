"""Makes our models known to transformers as soon as both are imported, in whatever order, and imports nothing for it.

`modeling` registers itself when it is imported. What is left is to import it in time: now, if transformers is here
already, or right after transformers' own `__init__`, before any name is asked of it.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

LIBRARY = "transformers"


def register_with_transformers() -> None:
    """Import our models now, or as soon as transformers is imported."""
    if LIBRARY in sys.modules:
        _import_models()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def leave_to_commands() -> None:
    """Wait for transformers no longer: a command imports what it needs, and when."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _import_models() -> None:
    importlib.import_module(".modeling", __package__)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds transformers as everybody does, and wraps what loads it."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != LIBRARY:
            return None
        leave_to_commands()  # once; and what follows must not come here again
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads transformers, and then our models."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _import_models()
