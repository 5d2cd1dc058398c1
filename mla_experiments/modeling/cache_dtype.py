"""How a model is told in how many bits its caches keep what they are given."""

from torch import nn

from ..kernels.stored import STORED
from .attention.checks import require
from .decoder import DecoderModel


def set_cache_dtype(model: nn.Module, dtype: str | None) -> None:
    """Have every cache that a model begins from now on kept in a dtype, whatever it computes in.

    Args:
        model: one of ours, or any module with one in it.
        dtype: "f32", "bf16", "f16", or "int8" with a scale for each part of a row; None for the model's own.

    Raises:
        UserError: an unknown dtype, no model of ours, or one that keeps windows, which stay as they are computed.
    """
    require(dtype is None or dtype in STORED, f"cache_dtype={dtype} is unknown; choose one of {', '.join(STORED)}")
    decoders = [module for module in model.modules() if isinstance(module, DecoderModel)]
    require(bool(decoders), f"cache_dtype={dtype} is for models of ours, and {type(model).__name__} is none")
    for decoder in decoders:
        window = decoder.config.sliding_window
        require(
            dtype is None or not any(decoder.config.windows()),
            f"cache_dtype={dtype} is not kept by layers with sliding_window={window}; leave it out",
        )
        decoder.cache_dtype = dtype
