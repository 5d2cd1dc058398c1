"""Compiles the C code into wheels, where there is a C compiler: see `mla_experiments/kernels/prebuilt.py`.

Without one, or with MLA_EXPERIMENTS_PURE=1, the wheel is one for every machine, which compiles at its first use.
"""

import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "mla_experiments/kernels"


class Kernels(BuildHookInterface):
    """A step of building a wheel."""

    def initialize(self, version, build_data):
        """Compile, and name the files and the kind of machine to the builder."""
        prebuilt = _read(Path(self.root) / KERNELS / "prebuilt.py")
        compiler = prebuilt.compiler()
        if version == "editable" or compiler is None or os.environ.get("MLA_EXPERIMENTS_PURE") == "1":
            return
        self.scratch = tempfile.TemporaryDirectory()
        try:
            made = self._made(prebuilt, compiler)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"The wheel is without compiled C code: {getattr(error, 'stderr', None) or error}")
            return
        if made:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
            build_data["force_include"].update({str(path): f"{KERNELS}/prebuilt/{path.name}" for path in made})

    def _made(self, prebuilt, compiler):
        """Compile; what a better level would have byte by byte like a lesser one is left out."""
        every = [(name, level) for level in reversed(prebuilt.levels()) for name in prebuilt.names()]
        made = {}
        for name, level in every:
            path = prebuilt.build(name, level, compiler, Path(self.scratch.name))
            made.setdefault(path.read_bytes(), path)
        return made.values()

    def finalize(self, version, build_data, artifact_path):
        """Forget what was compiled."""
        if hasattr(self, "scratch"):
            self.scratch.cleanup()


def _read(path):
    """Import a file without its package, which needs torch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
