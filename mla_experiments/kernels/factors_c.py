"""`factors.c` as an operator of PyTorch: attention among keys and values in factors, on CPUs."""

import ctypes

import torch
from torch.utils.flop_counter import register_flop_formula

from .compiling import CannotCompile, library, loaded
from .plain import NOT_PLAIN, is_plain
from .shared_keys import readable, splits_for

NAME = "factors"
Factors = tuple[torch.Tensor, torch.Tensor]


class Shape(ctypes.Structure):
    """The C code's `shape`."""

    _fields_ = [
        ("batch", ctypes.c_int64), ("num_heads", ctypes.c_int64), ("num_new", ctypes.c_int64),
        ("context", ctypes.c_int64), ("ranks", ctypes.c_int64), ("width", ctypes.c_int64),
        ("splits", ctypes.c_int64), ("threads", ctypes.c_int64),
        ("key_batch", ctypes.c_int64), ("key_token", ctypes.c_int64),
        ("value_batch", ctypes.c_int64), ("value_token", ctypes.c_int64),
        ("rank", ctypes.c_int64), ("mask_batch", ctypes.c_int64), ("mask_new", ctypes.c_int64),
    ]  # fmt: skip


class Sequence(ctypes.Structure):
    """The C code's `sequence`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("query", "key", "value", "mask")]


def why_not(query: Factors, key: Factors, value: Factors, mask: torch.Tensor | None) -> str | None:
    """Return why it cannot serve these tensors, or None; arguments as in `factors.attend_factors`."""
    tensors = (*query, *key, *value)
    found = library(NAME)
    if isinstance(found, CannotCompile):
        return str(found)
    if not all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors):
        return "it runs on CPUs, in f32"
    if not is_plain(*tensors, mask):
        return NOT_PLAIN
    if not all(_lie_as_rows(*pair) for pair in (key, value)) or key[0].stride(2) != value[0].stride(2):
        return "the factors of a rank do not lie side by side"
    (num_heads, width), lanes = (key[0].shape[3], key[1].shape[3]), found.lanes()
    if num_heads % lanes and width < lanes:  # heads are read in whole vectors, into what follows them
        return f"{num_heads} heads fill no vectors of {lanes}, and {width} numbers behind them are too few"
    return None


def _lie_as_rows(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether each rank's b lies right behind its a."""
    behind = b.data_ptr() - a.data_ptr() == a.shape[3] * a.element_size()
    return behind and a.stride() == b.stride() and a.stride(3) == 1


def attend(query: torch.Tensor, key: Factors, value: Factors, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Return softmax(scale · query keyᵀ + mask) value, `[B, H, T, D]`.

    Args:
        query: `[B, T, H, D]`.
        key: factors a `[B, S, R, H]` and b `[B, S, R, D]`, each rank's side by side in memory.
        value: as `key`.
        mask: `[B or 1, 1, T, S]`, boolean (True attends) or additive; None attends to everything.
        scale: factor on the scores before the softmax.

    Raises:
        MemoryError: there is none for the sums.
    """
    return torch.ops.mla_experiments.attend_factors(query, *key, *value, mask, scale)


def _attend(
    query: torch.Tensor,
    a_k: torch.Tensor,
    b_k: torch.Tensor,
    a_v: torch.Tensor,
    b_v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    (batch, num_new, num_heads, width), (context, ranks) = query.shape, a_k.shape[1:3]
    threads = torch.get_num_threads()
    query = (query * scale).contiguous()
    mask, mask_strides = readable(mask)
    splits = splits_for(batch, context, threads)
    shape = Shape(
        batch, num_heads, num_new, context, ranks, width, splits, threads,
        *a_k.stride()[:2], *a_v.stride()[:2], a_k.stride(2), *mask_strides,
    )  # fmt: skip
    read = Sequence(*(None if part is None else part.data_ptr() for part in (query, a_k, a_v, mask)))
    output = torch.empty(batch, num_new, num_heads, width)
    if loaded(NAME).attend(ctypes.byref(shape), ctypes.byref(read), ctypes.c_void_p(output.data_ptr())):
        raise MemoryError(f"no memory for attention over {context} tokens")
    return output.transpose(1, 2)


# an operator, so that profilers and FLOP counters see it
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define(
    "attend_factors(Tensor query, Tensor a_k, Tensor b_k, Tensor a_v, Tensor b_v, Tensor? mask, float scale) -> Tensor"
)
_operators.impl("attend_factors", _attend, "CPU")


@register_flop_formula(torch.ops.mla_experiments.attend_factors)
def _flops(query: tuple[int, ...], a_k: tuple[int, ...], *_: object, **__: object) -> int:
    """For each rank two products of every head: with a key's factor and with a value's."""
    batch, num_new, num_heads, width = query
    return 4 * batch * num_new * num_heads * a_k[1] * a_k[2] * width
