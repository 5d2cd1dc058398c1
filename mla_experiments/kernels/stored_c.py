"""`stored.c` and `octets.c` as an operator of PyTorch: attention over what a cache keeps, as it lies, on CPUs.

And the packing of it. Which code serves depends on how many query rows share a key, and on what the processor has.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import register_flop_formula

from . import shared_keys
from .compiling import CannotCompile, library, loaded
from .plain import NOT_PLAIN, is_followed, is_plain
from .stored import MOST_PARTS, Form, Sizes, Stored

NAME, OF_OCTETS = "stored", "octets"
WIDEST_PART = 512  # numbers of 8 bits: of more, a sum of products of 16 bits could leave 32


class Shape(ctypes.Structure):
    """The C code's `stored_shape`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "batch", "groups", "rows", "num_new", "context", "splits", "threads", "shared",
            "key_batch", "key_group", "key_token", "value_batch", "value_group", "value_token",
            "mask_batch", "mask_new",
        )),
        ("scale", ctypes.c_float), ("key", Form), ("value", Form),
    ]  # fmt: skip


def why_not_here() -> str | None:
    """Return what this machine lacks."""
    found = library(NAME)
    return str(found) if isinstance(found, CannotCompile) else None


def why_not(query: torch.Tensor, key: Stored, value: Stored | None, mask: torch.Tensor | None) -> str | None:
    """Return why it cannot serve this, or None; arguments as in `attend`."""
    kept = [one.rows for one in (key, value) if one is not None]
    if not all(one.is_cpu for one in (query, *kept)):
        return "it runs on CPUs"
    if query.dtype != torch.float32:
        return f"it computes in f32, not {query.dtype}"
    if not is_plain(query, mask, *kept):
        return NOT_PLAIN
    if any(one.stride(-1) != 1 for one in kept):
        return "the numbers of a row lie apart"
    if len(key.parts) > MOST_PARTS:
        return f"a row has {len(key.parts)} parts, more than {MOST_PARTS}"
    return why_not_here()


def attend(
    query: torch.Tensor,
    key: Stored,
    value: Stored | None,
    value_width: int,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Return softmax(scale · query keyᵀ + mask) value, `[B, H, T, Dv]`.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, G, S, D]`, each shared by H / G heads.
        value: `[B, G, S, Dv]`; None where values are the first numbers of the keys.
        value_width: Dv.
        mask: `[B or 1, 1, T, S]`, boolean (True attends) or additive; None attends to everything.
        scale: factor on the scores before the softmax.
    """
    if is_followed() or torch.autograd._profiler_enabled():  # as an operator it is seen
        values = None if value is None else value.rows
        parts = [list(one.parts) for one in (key, value or key)]
        return torch.ops.mla_experiments.attend_stored(query, key.rows, values, *parts, value_width, mask, scale)
    return _attend(query, key, value, value_width, mask, scale)


def is_whole(*widths: int) -> bool:
    """Return whether rows of such widths fill whole vectors, so that they are read where they lie in f32."""
    lanes = loaded(NAME).stored_lanes()
    return all(width % lanes == 0 for width in widths)


def reads_pairs(key: Stored, value: Stored, width: int, value_width: int) -> bool:
    """Return whether `octets.c` serves rows of 8 bits, and is quicker than what computes in single precision."""
    served = bool(key.parts and value.parts) and key.width == width and value_width <= value.parts[0]
    even = all(part % 2 == 0 and part <= WIDEST_PART for part in key.parts)
    return served and even and pairs_pay()


def pairs_pay() -> bool:
    """Return whether this processor multiplies pairs of 16-bit numbers, and adds, in one instruction."""
    found = library(OF_OCTETS)
    return not isinstance(found, CannotCompile) and bool(found.pairs_pay())


def _attend_rows(
    query: torch.Tensor, key_rows: torch.Tensor, value_rows: torch.Tensor | None, key_parts: list[int],
    value_parts: list[int], value_width: int, mask: torch.Tensor | None, scale: float,
) -> torch.Tensor:  # fmt: skip
    key = Stored(key_rows, tuple(key_parts), query.dtype)
    value = None if value_rows is None else Stored(value_rows, tuple(value_parts), query.dtype)
    return _attend(query, key, value, value_width, mask, scale)


def _attend(
    query: torch.Tensor, key: Stored, value: Stored | None, value_width: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    (batch, num_heads, num_new, width), (_, groups, context, _) = query.shape, key.shape
    many = shared_keys.fills_lanes(num_heads // groups * num_new)
    of_values = value or key
    in_pairs = many and reads_pairs(key, of_values, width, value_width)
    if many and groups == 1 and not in_pairs:
        return shared_keys.attend_kept(query, key, value, 1, (width, 0, value_width), mask, scale)
    lanes, threads = loaded(NAME).stored_lanes(), torch.get_num_threads()
    rows = query * scale  # [B, G · R, D], R rows that share a key
    rows = (rows if is_whole(width) else F.pad(rows, (0, -width % lanes))).contiguous()
    mask, mask_strides = shared_keys.readable(mask)
    splits = shared_keys.splits_for(batch * groups, context, threads)
    shape = Shape(
        batch, groups, num_heads // groups * num_new, num_new, context, splits, threads, value is None,
        *key.strides(), *of_values.strides(), *mask_strides, scale, key.form(), of_values.form(value_width),
    )  # fmt: skip
    output = torch.empty(batch, num_heads, num_new, value_width)
    pointers = (rows, key.rows, of_values.rows, mask, output)
    read = [ctypes.c_void_p(None if one is None else one.data_ptr()) for one in pointers]
    code = loaded(OF_OCTETS).attend_octets if in_pairs else loaded(NAME).attend_stored
    if code(ctypes.byref(shape), *read):
        raise MemoryError(f"no memory for attention over {context} tokens")
    return output


def pack(new: torch.Tensor, parts: tuple[int, ...], into: torch.Tensor) -> None:
    """Write numbers `[B, G, T, D]` as rows of int8 into a part of a buffer, `[B, G, T, W]`."""
    new = new.contiguous()
    form = Stored(into, parts, torch.float32).form()
    numbers = (*new.shape[:3], *into.stride()[:3])
    loaded(NAME).pack(
        ctypes.byref(form), ctypes.c_void_p(new.data_ptr()), ctypes.c_void_p(into.data_ptr()),
        *(ctypes.c_int64(number) for number in numbers),
    )  # fmt: skip


# an operator, so that profilers and FLOP counters see it
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define(
    "attend_stored(Tensor query, Tensor key, Tensor? value, int[] key_parts, int[] value_parts, int value_width, "
    "Tensor? mask, float scale) -> Tensor"
)
_operators.impl("attend_stored", _attend_rows, "CPU")


@register_flop_formula(torch.ops.mla_experiments.attend_stored)
def _flops(
    query: Sizes, key: Sizes, value: Sizes, key_parts: object, value_parts: object, value_width: int, *_: object,
    **__: object,
) -> int:  # fmt: skip
    """Two products of every query: with the keys and with the values of its head."""
    batch, num_heads, num_new, width = query
    return 2 * batch * num_heads * num_new * key[2] * (width + value_width)
