"""A linear map that is quick on a CPU for the few rows of a decoding step too.

A decoding step reads every weight for a row or a few, so that the memory's rate is all it can reach. MKL comes near it
on some processors and for one or two rows only; `linear.c` does everywhere (`benchmarks/README.md`).
"""

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .compiling import CannotCompile, library, loaded
from .plain import is_untouched, may_leave_operators, stands_alone
from .stored import KINDS, packed, unpacked

logger = logging.getLogger(__name__)
NAME = "linear"
FEW_ROWS = 16  # above, arithmetic binds, which MKL does well


def project(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return `module(rows)`: in C where a plain `nn.Linear`, or one in fewer bits, maps few rows in f32 on a CPU.

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
    if is_untouched(module, nn.Linear):
        weight = module._parameters["weight"]  # where it is kept, since a step asks some fifty times
        if weight is None or weight.dtype is not torch.float32:
            return None
    elif type(module) is PackedLinear and stands_alone(module):
        weight = module._buffers["kept"]
    else:
        return None
    served = (
        weight is not None
        and module._parameters.get("bias") is None
        and 0 < rows.numel() <= FEW_ROWS * rows.shape[-1]
        and rows.shape[-1] == module.in_features
        and may_leave_operators(rows, weight)
        and _is_there()
    )
    return weight if served else None


class PackedLinear(nn.Module):
    """y = x Wᵀ + b for inference, W in fewer bits: each of its rows as `stored.py` keeps a row of a cache.

    Args:
        linear: whose weight is taken.
        dtype: bfloat16 or float16, or int8 with a scale for each row.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight = linear.weight.detach()
        rows = packed(weight, (self.in_features,)) if dtype is torch.int8 else weight.to(dtype)
        self.register_buffer("kept", rows.contiguous())
        self.kept: torch.Tensor

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the dtype of what is given.

        Weights in bf16 have many rows rounded to it too, where the processor multiplies such numbers itself.
        """
        many = rows.is_cpu and rows.numel() > FEW_ROWS * self.in_features
        if many and self.kept.dtype is torch.bfloat16 and multiplies_bf16():
            output = F.linear(rows.to(torch.bfloat16), self.kept).to(rows.dtype)
            return output if self.bias is None else output + self.bias
        return F.linear(rows, self.weight.to(rows.dtype), self.bias)

    @property
    def weight(self) -> torch.Tensor:
        """W `[out, in]` as it is kept, made anew where it is kept in 8 bits."""
        return unpacked(self.kept, (self.in_features,)) if self.kept.dtype is torch.int8 else self.kept

    def extra_repr(self) -> str:
        """Say sizes and dtype."""
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.kept.dtype}"

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: what is rounded for decoding is none of the model's weights."""
        raise RuntimeError("weights in fewer bits are for decoding and are not saved; save the model as it was loaded")


@cache
def multiplies_bf16() -> bool:
    """Return whether the processor multiplies matrices of bf16 itself, which is then several times as fast as f32."""
    return bool(torch.cpu._is_avx512_bf16_supported())


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
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 5 + [ctypes.c_int]
    function.restype = ctypes.c_int
    return function


def few_rows_linear(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return rows weightᵀ on a CPU, rows `[..., in]` in single precision.

    Args:
        rows: `[..., in]`.
        weight: `[out, in]`, contiguous, in single precision or 16 bits, or `[out, W]` as `stored.packed` gives it.
    """
    rows, num_out, num_in = rows.contiguous(), weight.shape[0], rows.shape[-1]
    output = rows.new_empty((*rows.shape[:-1], num_out))
    pointers = (rows.data_ptr(), weight.data_ptr(), output.data_ptr())
    form = (KINDS[weight.dtype], weight.shape[1] * weight.itemsize)
    if prototyped()(*pointers, rows.numel() // num_in, num_in, num_out, *form, torch.get_num_threads()):
        raise MemoryError(f"no memory for {rows.numel() // num_in} rows of {num_in} numbers")
    return output


# An operator too, so that profilers see it; called without one, since a step asks for it some fifty times.
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define("few_rows_linear(Tensor rows, Tensor weight) -> Tensor")
_operators.impl("few_rows_linear", few_rows_linear, "CPU")
