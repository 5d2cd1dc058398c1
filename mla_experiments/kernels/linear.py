"""A linear map that is quick on a CPU for the few rows of a decoding step too.

A decoding step reads every weight for a row or a few, so that the memory's rate is all it can reach. MKL comes near it
on some processors and for one or two rows only; `linear.c` does everywhere (`benchmarks/README.md`).
"""

import ctypes
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from .compiling import CannotCompile, library, loaded
from .plain import is_untouched, may_leave_operators

logger = logging.getLogger(__name__)
NAME = "linear"
FEW_ROWS = 16  # above, arithmetic binds, which MKL does well


def project(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return `module(rows)`: in C where a plain `nn.Linear` maps few rows on a CPU in single precision.

    Args:
        module: whatever maps `[..., in]` to `[..., out]`; an `nn.Linear`, or what others have put in its place.
        rows: `[..., in]`.
    """
    weight = None if torch.compiler.is_compiling() else _weight_for_c(module, rows)
    if weight is not None:
        if torch.autograd._profiler_enabled():  # as an operator it has a name there
            return torch.ops.mla_experiments.few_rows_linear(rows, weight)
        return few_rows_linear(rows, weight)
    return module(rows)


def _weight_for_c(module: nn.Module, rows: torch.Tensor) -> torch.Tensor | None:
    """Return the weight of a module that C may stand in for, here, with these rows."""
    weight = module._parameters.get("weight")
    served = (
        weight is not None
        and is_untouched(module, nn.Linear)
        and module._parameters.get("bias") is None
        and 0 < rows.numel() <= FEW_ROWS * rows.shape[-1]
        and may_leave_operators(weight, rows)
        and _is_there()
    )
    return weight if served else None


@cache
def _is_there() -> bool:
    """Return whether there is the C code; where there is none, say once what that costs."""
    found = library(NAME)
    if isinstance(found, CannotCompile):
        logger.warning("Decoding goes on in PyTorch alone, which takes up to twice as long (no C code: %s)", found)
    return not isinstance(found, CannotCompile)


@cache
def prototyped() -> Callable:
    """Return the C function, its arguments declared."""
    function = loaded(NAME).few_rows
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    function.restype = None
    return function


def few_rows_linear(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return rows weightᵀ for `[..., in]` and `[out, in]`, on a CPU, in single precision, the weight contiguous."""
    rows, (num_out, num_in) = rows.contiguous(), weight.shape
    output = rows.new_empty((*rows.shape[:-1], num_out))
    pointers = (rows.data_ptr(), weight.data_ptr(), output.data_ptr())
    prototyped()(*pointers, rows.numel() // num_in, num_in, num_out, torch.get_num_threads())
    return output


# An operator too, so that profilers see it; called without one, since a step asks for it some fifty times.
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define("few_rows_linear(Tensor rows, Tensor weight) -> Tensor")
_operators.impl("few_rows_linear", few_rows_linear, "CPU")
