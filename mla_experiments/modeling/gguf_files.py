"""GGUF files (llama.cpp's form of a checkpoint) as checkpoint folders, with the `gguf` package.

What is written here is read by `stock/gguf_read.py`, rotations and DeepSeek included; other architectures are read by
transformers. Weights come out in single precision, whatever they were quantised to; bf16 that we read stays bf16.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from ..errors import Missing, UserError, reason_of
from .shards import WEIGHTS

if TYPE_CHECKING:
    from .stock.gguf_read import File

SUFFIX = ".gguf"
MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Return whether a path names a GGUF file."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def gguf_config(path: Path) -> PreTrainedConfig:
    """Return the stock config that a GGUF file describes.

    Raises:
        UserError: `gguf` is not installed, the file is damaged, or it is of a model that transformers cannot read.
    """
    if file := _opened(path):
        from .stock.gguf_read import config_of

        return config_of(file)
    return _read(path, AutoConfig.from_pretrained)


def unpack_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file as a stock checkpoint: config, weights in single precision, tokenizer.

    Args:
        path: of the file.
        folder: an empty folder to write into.

    Raises:
        UserError: as `gguf_config`.
    """
    if file := _opened(path):
        from .stock.gguf_read import save_tokenizer, unpack

        unpack(file, folder)
        if not save_tokenizer(file, folder):
            _read(path, AutoTokenizer.from_pretrained).save_pretrained(folder)
        return
    model = _read(path, AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    model.config.quantization_config = None  # what is written is quantised no longer
    model.config.save_pretrained(folder)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    _read(path, AutoTokenizer.from_pretrained).save_pretrained(folder)


def _opened(path: Path) -> "File | None":
    """Return a file of an architecture that is read here, None of another.

    Raises:
        UserError: `gguf` is not installed, or it is no whole GGUF file.
    """
    _check(path)
    from .stock.gguf_read import File  # which reads what import makes of shapes

    file = File(path)
    return file if file.is_known else None


def _check(path: Path) -> None:
    """Refuse what is none, or cannot be read without the package."""
    if importlib.util.find_spec("gguf") is None:
        raise Missing("gguf", f"{path.name} is a GGUF file")
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"model={path} does not begin as a GGUF file does; fetch it again")


def _read(path: Path, reader: Callable, **options: Any) -> Any:
    """Return what a reader of transformers makes of a file; its progress bars and reports are not shown."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        return reader(path.parent, gguf_file=path.name, trust_remote_code=False, **options)
    except Exception as error:
        raise UserError(f"model={path} cannot be read ({reason_of(error)}); fetch it again, or give another") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
