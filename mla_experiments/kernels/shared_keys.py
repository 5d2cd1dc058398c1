"""`shared_keys.c` as operators of PyTorch: attention of query rows that share keys and values, on CPUs."""

import ctypes
import math

import torch
from torch.utils.flop_counter import register_flop_formula

from .compiling import CannotCompile, library, loaded
from .plain import NOT_PLAIN, is_plain
from .stored import Form, Sizes, Stored

NAME = "shared_keys"
SHORTEST_SPLIT = 128  # tokens: a shorter one is done before another thread has begun
FULL_ENOUGH = 0.75  # lanes without a row are computed too; with fewer rows PyTorch is faster


class Shape(ctypes.Structure):
    """The C code's `shape`."""

    _fields_ = [
        ("batch", ctypes.c_int64), ("parts", ctypes.c_int64), ("num_rows", ctypes.c_int64), ("num_new", ctypes.c_int64),
        ("context", ctypes.c_int64), ("width", ctypes.c_int64), ("tail_width", ctypes.c_int64),
        ("value_width", ctypes.c_int64), ("splits", ctypes.c_int64), ("threads", ctypes.c_int64),
        ("query_batch", ctypes.c_int64), ("query_row", ctypes.c_int64),
        ("key_batch", ctypes.c_int64), ("key_part", ctypes.c_int64), ("key_token", ctypes.c_int64),
        ("tail_batch", ctypes.c_int64), ("tail_token", ctypes.c_int64),
        ("value_batch", ctypes.c_int64), ("value_part", ctypes.c_int64), ("value_token", ctypes.c_int64),
        ("mask_batch", ctypes.c_int64), ("mask_new", ctypes.c_int64),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


class Sequence(ctypes.Structure):
    """The C code's `sequence`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("query", "key", "tail", "value", "mask")]


class Kept(ctypes.Structure):
    """The C code's `stored`."""

    _fields_ = [
        ("key", ctypes.c_void_p), ("value", ctypes.c_void_p), ("key_batch", ctypes.c_int64),
        ("key_token", ctypes.c_int64), ("value_batch", ctypes.c_int64), ("value_token", ctypes.c_int64),
        ("tail", ctypes.c_int64), ("key_form", Form), ("value_form", Form),
    ]  # fmt: skip


class Turning(ctypes.Structure):
    """The C code's `turning`."""

    _fields_ = [
        ("cosines", ctypes.c_void_p), ("sines", ctypes.c_void_p), ("weight", ctypes.c_void_p),
        ("batch", ctypes.c_int64), ("token", ctypes.c_int64), ("interleaved", ctypes.c_int64),
    ]  # fmt: skip


def why_not_here() -> str | None:
    """Return what this machine lacks."""
    found = library(NAME)
    return str(found) if isinstance(found, CannotCompile) else None


def why_not(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> str | None:
    """Return why it cannot serve these tensors, or None; arguments as in `attend`."""
    if not (query.is_cpu and key.is_cpu and value.is_cpu):
        return "it runs on CPUs"
    if not (query.dtype == key.dtype == value.dtype == torch.float32):
        return f"it knows f32, not {query.dtype}"
    if not is_plain(query, key, value, mask):
        return NOT_PLAIN
    if key.stride(-1) != 1 or value.stride(-1) != 1:
        return "the numbers of a key or value lie apart"
    return None


def fills_lanes(num_rows: int) -> bool:
    """Return whether so many rows fill this processor's vectors well enough to be worth it."""
    return num_rows / lanes_for(num_rows) >= FULL_ENOUGH


def lanes_for(num_rows: int) -> int:
    """Return how many lanes are computed for so many rows: whole vectors."""
    lanes = loaded(NAME).lanes()
    return -(-num_rows // lanes) * lanes


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    tail: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query [key; tail]ᵀ + mask) value, `[B, H, T, Dv]`.

    Args:
        query: `[B, H, T, D + Dt]`.
        key: `[B, G, S, D]`, each shared by H / G heads.
        value: `[B, G, S, Dv]`; may be a part of the key's own memory.
        mask: `[B or 1, 1, T, S]`, boolean (True attends) or additive; None attends to everything.
        scale: factor on the scores before the softmax.
        tail: `[B, S, Dt]`, the end of every key, the same for all G; None where keys are whole.
    """
    return torch.ops.mla_experiments.attend_shared_keys(query, key, value, mask, scale, tail)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    tail: torch.Tensor | None,
) -> torch.Tensor:
    parts, context, key_width = key.shape[1:]
    tail = key[:, 0, :, :0] if tail is None else tail
    strides = (*key.stride()[:3], *tail.stride()[:2], *value.stride()[:3])
    sizes = (parts, context, key_width, tail.shape[-1], value.shape[-1])
    return _run(query, (key, tail, value), sizes, strides, mask, scale)


def attend_turned(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    tables: tuple[torch.Tensor, torch.Tensor],
    interleaved: bool,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    """Return what `turned.attend_turned` does, whose arguments these are."""
    return torch.ops.mla_experiments.attend_turned_keys(query, key, value, mask, scale, *tables, interleaved, weight)


def _attend_turned(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    interleaved: bool,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    cosines, sines = cosines.contiguous(), sines.contiguous()
    apart = cosines.stride(0) if cosines.shape[0] > 1 else 0
    weight = None if weight is None else weight.contiguous()
    by = Turning(
        cosines.data_ptr(), sines.data_ptr(), None if weight is None else weight.data_ptr(),
        apart, cosines.stride(1), int(interleaved),
    )  # fmt: skip
    sizes = (*key.shape[1:], 0, value.shape[-1])
    strides = (*key.stride()[:3], 0, 0, *value.stride()[:3])
    return _run(query, (key, None, value), sizes, strides, mask, scale, by=by)


def attend_kept(
    query: torch.Tensor,
    key: Stored,
    value: Stored | None,
    parts: int,
    widths: tuple[int, int, int],
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Return what `attend` does, of rows as a cache keeps them: a part is V numbers of a row, the tail lies behind all.

    Args:
        query: `[B, H, T, D + Dt]`.
        key: `[B, 1, S, W]`, whole rows.
        value: `[B, 1, S, V]`; None where values are the first V numbers of the part of a key.
        parts: into how many a row falls.
        widths: D, Dt, V.
        mask: see `attend`.
        scale: see there.
    """
    key_width, tail_width, value_width = widths
    token, of_value = (_padded(one.width) for one in (key, value or key))
    sizes = (parts, key.shape[2], key_width, tail_width, value_width)
    strides = (0, value_width, token, 0, token, 0, value_width, of_value)
    values = (None, 0, 0, Form()) if value is None else (value.rows.data_ptr(), *value.strides()[::2], value.form())
    kept = Kept(
        key.rows.data_ptr(), values[0], *key.strides()[::2], *values[1:3], parts * value_width, key.form(), values[3]
    )
    return _run(query, (None, None, None), sizes, strides, mask, scale, kept)


def readable(mask: torch.Tensor | None) -> tuple[torch.Tensor | None, tuple[int, int]]:
    """Return a mask as C reads it, f32 to be added to scores, and its strides from sequence to sequence and row."""
    if mask is None:
        return None, (0, 0)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
    mask = mask.float().contiguous()
    return mask, (mask.stride(0) if mask.shape[0] > 1 else 0, mask.stride(2))


def splits_for(sequences: int, context: int, threads: int) -> int:
    """Return into how many parts the context of each sequence falls, so that every thread has one to work on."""
    return 1 if sequences % threads == 0 else max(1, min(threads, context // SHORTEST_SPLIT))


def _padded(width: int) -> int:
    """What a row takes once it is unpacked: whole vectors."""
    lanes = loaded(NAME).lanes()
    return -(-width // lanes) * lanes


def _run(
    query: torch.Tensor,
    memory: tuple[torch.Tensor | None, ...],
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    mask: torch.Tensor | None,
    scale: float,
    kept: Kept | None = None,
    by: Turning | None = None,
) -> torch.Tensor:
    (batch, num_heads, num_new, width), (parts, context, *widths) = query.shape, sizes
    threads = torch.get_num_threads()
    rows = query.reshape(batch, num_heads * num_new, width).contiguous()
    mask, mask_strides = readable(mask)
    splits = splits_for(batch, context, threads)
    shape = Shape(
        batch, parts, num_heads // parts * num_new, num_new, context, *widths, splits, threads,
        rows.stride(0), rows.stride(1), *strides, *mask_strides, scale,
    )  # fmt: skip
    read = Sequence(*(None if part is None else part.data_ptr() for part in (rows, *memory, mask)))
    output = torch.empty(batch, num_heads, num_new, widths[-1])
    described = (ctypes.byref(one) for one in (shape, read, kept or Kept(), by or Turning()))
    if loaded(NAME).attend(*described, ctypes.c_void_p(output.data_ptr())):
        raise MemoryError(f"no memory for attention over {context} tokens")
    return output


# an operator, so that profilers and FLOP counters see it
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define(
    "attend_shared_keys(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, Tensor? tail) -> Tensor"
)
_operators.impl("attend_shared_keys", _attend, "CPU")
_operators.define(
    "attend_turned_keys(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, Tensor cosines, "
    "Tensor sines, bool interleaved, Tensor? weight) -> Tensor"
)
_operators.impl("attend_turned_keys", _attend_turned, "CPU")


@register_flop_formula([torch.ops.mla_experiments.attend_shared_keys, torch.ops.mla_experiments.attend_turned_keys])
def _flops(query: Sizes, key: Sizes, value: Sizes, *_: object, **__: object) -> int:
    """Two products of every query: with the keys and with the values of its head."""
    batch, num_heads, num_new, width = query
    return 2 * batch * num_heads * num_new * key[2] * (width + value[-1])
