"""Packages that some commands need beside those of every command: asked for before any work is done."""

import importlib.util

from ..errors import UserError

STATISTICS = ("scipy",)
OPTIONAL = {  # package to import: the package to install, and what it is for
    "gensim": ("gensim", "corpus=wiki-sample, the offline sample"),
    "scipy": ("scipy", "study, report, compare, convert"),
    "plotly": ("plotly", "report"),
    "lm_eval": ("lm-eval", "eval --tasks"),
    "gguf": ("gguf", "export --to gguf, GGUF files, smollm2-135m among them"),
    "ray": ("ray", "study --executor ray"),
    "triton": ("triton", "MLA's decoding on GPUs"),
    "flash_mla": ("flash_mla", "MLA's decoding on Hopper GPUs"),
    "flashinfer": ("flashinfer-python", "MLA's decoding on GPUs"),
}


def need(*modules: str) -> None:
    """Refuse to go on where one of these is not installed.

    Raises:
        UserError: it names all that are missing, and the command that installs them.
    """
    missing = [OPTIONAL[module][0] for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed, but needed here; pip install {' '.join(missing)}")
