"""How a model is told in how many bits it reads its weights: what a decoding step at a short context mostly does."""

from torch import nn

from ..kernels import PackedLinear
from ..kernels.stored import STORED
from .attention.base import Attention
from .attention.checks import require
from .decoder import DecoderForCausalLM


def set_weight_dtype(model: DecoderForCausalLM, dtype: str | None) -> None:
    """Keep the matrices of a model in fewer bits from now on, for inference alone; there is no way back.

    All linear maps are, and the head, of which a tied embedding table keeps its own copy; embeddings, norms, and what
    absorption multiplies with are not. Such a model cannot be saved, nor trained: embeddings and norms, which are left,
    have no gradients any more, or they would be trained alone without a word.

    Args:
        model: one of ours.
        dtype: "bf16", "f16", or "int8" with a scale for each row of a matrix; None or "f32" leaves it as it is.

    Raises:
        UserError: an unknown dtype, no model of ours, or linear maps that something has been put around, or in place
            of.
    """
    require(dtype is None or dtype in STORED, f"weight_dtype={dtype} is unknown; choose one of {', '.join(STORED)}")
    is_ours = isinstance(model, DecoderForCausalLM)
    require(is_ours, f"weight_dtype={dtype} is for models of ours, and {type(model).__name__} is none")
    if dtype is None or STORED[dtype] is model.dtype:
        return
    as_matrices = {
        id(part)
        for layer in model.modules()
        if isinstance(layer, Attention)
        for name in layer.as_matrices
        for part in getattr(layer, name).modules()
    }
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and id(module) not in as_matrices:
            require(
                type(module) is nn.Linear,
                f"weight_dtype={dtype} needs plain linear maps, but {path} is a {type(module).__name__}; leave it out",
            )
            model.set_submodule(path, PackedLinear(module, STORED[dtype]))
    model.requires_grad_(False)
