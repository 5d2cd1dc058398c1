"""A linear map that is quick on a CPU for the few rows of a decoding step too.

A decoding step reads every weight for a row or a few, so that the memory's rate is all it can reach. MKL comes near it
on some processors and for one or two rows only; `linear.c` does everywhere (`benchmarks/README.md`).
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from .compiling import CannotCompile, library

NAME = "linear"
FEW_ROWS = 16  # above, arithmetic binds, which MKL does well


class Linear(nn.Linear):
    """`nn.Linear`, in C where few rows are mapped on a CPU in single precision without gradients."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        weight = self.weight
        if input.numel() > FEW_ROWS * self.in_features or not self._is_for_c(input, weight):
            return super().forward(input)
        if is_in_torch_dispatch_mode():  # somebody counts
            return torch.ops.mla_experiments.few_rows_linear(input, weight)
        return few_rows_linear(input, weight)

    def _is_for_c(self, input, weight) -> bool:
        if not (weight.is_cpu and input.is_cpu and input.dtype == weight.dtype == torch.float32 and input.numel()):
            return False
        if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
            return False
        if self.bias is not None or torch.is_autocast_enabled("cpu"):
            return False
        return weight.is_contiguous() and not isinstance(library(NAME), CannotCompile)


@cache
def prototyped() -> Callable:
    """Return the C function, its arguments declared."""
    function = library(NAME).few_rows
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    function.restype = None
    return function


def few_rows_linear(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return input weightᵀ for `[..., in]` and `[out, in]`, on a CPU, in single precision, the weight contiguous."""
    input, (num_out, num_in) = input.contiguous(), weight.shape
    output = input.new_empty((*input.shape[:-1], num_out))
    pointers = (input.data_ptr(), weight.data_ptr(), output.data_ptr())
    prototyped()(*pointers, input.numel() // num_in, num_in, num_out, torch.get_num_threads())
    return output


# An operator, so that FLOP counters see it; called without one, since a step asks for it some fifty times.
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define("few_rows_linear(Tensor input, Tensor weight) -> Tensor")
_operators.impl("few_rows_linear", few_rows_linear, "CPU")


@register_flop_formula(torch.ops.mla_experiments.few_rows_linear)
def _flops(input, weight, *_, **__) -> int:
    """A multiply-add for every weight and row."""
    return 2 * math.prod(input[:-1]) * math.prod(weight)
