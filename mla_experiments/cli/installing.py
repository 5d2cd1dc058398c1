"""The scripts of a clone install what they miss: the documented line of packages must do for them.

Only the scripts at the root and in `data/` come here, after one sentence that says what and why. The installed command
never does.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from ..errors import UserError

FORBIDDEN_BY = "MLA_EXPERIMENTS_NO_INSTALL"
KEPT = ("torch", "transformers", "datasets", "numpy", "tokenizers", "huggingface_hub")  # as they are


def install(package: str, why: str, asked_not_to: bool = False) -> None:
    """Install a package into the environment that this process runs in, and say so first.

    Args:
        package: its name on PyPI.
        why: what needs it.
        asked_not_to: by a flag.

    Raises:
        UserError: it is forbidden, or cannot be done; the sentence says what to type.
    """
    if reason := why_not(asked_not_to):
        raise UserError(f"{package} is not installed, and {reason}; pip install {package}")
    print(f"Installing {package} into {sys.prefix}: {why}. ({FORBIDDEN_BY}=1 or --no-install forbids it.)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{pin}\n" for pin in pins()), encoding="utf-8")
        done = subprocess.run([*installer(), "--quiet", "--constraint", str(constraints), package],
                              capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise UserError(f"{package} could not be installed ({last[:160]}); pip install {package}")
    importlib.invalidate_caches()


def why_not(asked_not_to: bool) -> str | None:
    """Return what forbids to install anything into this environment."""
    if asked_not_to:
        return "--no-install forbids to install it"
    if os.environ.get(FORBIDDEN_BY, "0") not in ("", "0"):
        return f"{FORBIDDEN_BY}={os.environ[FORBIDDEN_BY]} forbids to install it"
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"  # PEP 668
    is_own = sys.prefix != sys.base_prefix or os.environ.get("PIP_BREAK_SYSTEM_PACKAGES", "0") not in ("", "0")
    if managed.exists() and not is_own:
        return "this Python is managed by the system"
    if not os.access(sysconfig.get_path("purelib"), os.W_OK):
        return f"{sysconfig.get_path('purelib')} cannot be written"
    return None


def installer() -> list[str]:
    """Return the command that installs into this environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise UserError("neither pip nor uv is here to install what is missing; python -m ensurepip")


def pins() -> list[str]:
    """Return the versions that must not change by what is installed."""
    found = {name: version for name in KEPT if (version := _version(name))}
    return [f"{name}=={version}" for name, version in found.items()]


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
