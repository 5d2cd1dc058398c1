"""RMSNorm (Zhang & Sennrich 2019, §3, eq. 4) that costs little for the few rows of a decoding step.

PyTorch composes it of several operators, each of which costs more than the arithmetic; a step has two or three norms a
layer. `norm.c` is one call.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from .compiling import CannotCompile, library, loaded
from .plain import is_untouched, may_leave_operators

NAME = "norm"
FEW_NUMBERS = 2**14  # above, the operators' threads pay


def normalise(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return `module(rows)`: in C where a plain `nn.RMSNorm` norms few numbers on a CPU in single precision.

    Args:
        module: a norm of `[..., D]`, or what others have put in its place.
        rows: `[..., D]`.
    """
    norm = None if torch.compiler.is_compiling() else _for_c(module, rows)
    if norm is None:
        return module(rows)
    if torch.autograd._profiler_enabled():  # as an operator it has a name there
        return torch.ops.mla_experiments.rms_norm(rows, *norm)
    return rms_norm(rows, *norm)


def _for_c(module: nn.Module, rows: torch.Tensor) -> tuple[torch.Tensor, float] | None:
    """Return the weight and the epsilon of a module that C may stand in for, here, with these rows."""
    if not is_untouched(module, nn.RMSNorm) or not 0 < rows.numel() <= FEW_NUMBERS:
        return None
    weight, eps = module._parameters["weight"], module.eps
    if weight is None or eps is None or len(module.normalized_shape) != 1 or weight.dtype is not torch.float32:
        return None
    if rows.shape[-1] != weight.shape[0] or not may_leave_operators(rows, weight):
        return None
    return None if isinstance(library(NAME), CannotCompile) else (weight, eps)


@cache
def prototyped() -> Callable:
    """Return the C function, its arguments declared."""
    function = loaded(NAME).rms_norm
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2 + [ctypes.c_float]
    function.restype = None
    return function


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the norm of `[..., D]` with a weight `[D]`, on a CPU, in single precision, the weight contiguous."""
    rows = rows.contiguous()
    output, width = torch.empty_like(rows), weight.shape[0]
    pointers = (rows.data_ptr(), weight.data_ptr(), output.data_ptr())
    prototyped()(*pointers, rows.numel() // width, width, eps)
    return output


# An operator too, so that profilers see it.
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define("rms_norm(Tensor rows, Tensor weight, float eps) -> Tensor")
_operators.impl("rms_norm", rms_norm, "CPU")
