"""Rows of a cache in fewer bits than they are computed in, and how they are read: as they lie, or made plain again.

    bf16, f16    16 bits a number
    int8         8 bits a number, and behind each row, at a multiple of 4 bytes, one f32 scale for each of its parts:
                 x ≈ scale · n, scale = max |x| / 127 over the part

A row is one token's of one head. Its parts are those that differ in size, such as a latent and a rotary key: one scale
for both would leave the smaller one few of its bits.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

STORED = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.int8}
Sizes = tuple[int, ...]  # of a tensor, as a formula of FLOPs is given them
ALIGNED = 4  # bytes, of a scale
LARGEST = 127
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}  # as `vectors.h` numbers them
MOST_PARTS = 16


class Form(ctypes.Structure):
    """The `form` of `vectors.h`."""

    _fields_ = [
        ("kind", ctypes.c_int64), ("width", ctypes.c_int64), ("parts", ctypes.c_int64),
        ("ends", ctypes.c_int64 * MOST_PARTS),
    ]  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """What a cache holds of keys or values, for kernels that read it as it lies.

    Attributes:
        rows: `[..., S, D]` of a floating dtype, or `[..., S, W]` of int8, numbers and then scales.
        parts: widths of the parts with a scale each, of int8; they sum up to D.
        dtype: in which is computed.
    """

    rows: torch.Tensor
    parts: tuple[int, ...]
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Return D."""
        return sum(self.parts) if self.parts else self.rows.shape[-1]

    @property
    def shape(self) -> torch.Size:
        """Return the shape that the plain numbers have, `[..., S, D]`."""
        return torch.Size((*self.rows.shape[:-1], self.width))

    def squeeze(self, dim: int) -> "Stored":
        """Return it without a dimension of size 1."""
        return Stored(self.rows.squeeze(dim), self.parts, self.dtype)

    def unsqueeze(self, dim: int) -> "Stored":
        """Return it with another dimension of size 1."""
        return Stored(self.rows.unsqueeze(dim), self.parts, self.dtype)

    def first(self, count: int) -> "Stored":
        """Return what there is of the first tokens."""
        return Stored(self.rows[..., :count, :], self.parts, self.dtype)

    def form(self, width: int | None = None) -> Form:
        """Return how rows lie, for code in C that reads the first `width` numbers of each, by default all."""
        return form_of(self.rows.dtype, self.parts, self.width if width is None else width)

    def strides(self) -> list[int]:
        """Return how many bytes lie between what follows another, in each dimension but the last."""
        return [stride * self.rows.element_size() for stride in self.rows.stride()[:-1]]

    def plain(self) -> torch.Tensor:
        """Return the numbers, `[..., S, D]`."""
        return unpacked(self.rows, self.parts).to(self.dtype) if self.parts else self.rows.to(self.dtype)


@functools.cache
def form_of(dtype: torch.dtype, parts: tuple[int, ...], width: int) -> Form:
    """Return how rows lie, see `Stored.form`: one for all, since a step asks for every layer's."""
    ends = [sum(parts[: number + 1]) for number in range(len(parts))]
    return Form(KINDS[dtype], width, len(ends), (ctypes.c_int64 * MOST_PARTS)(*ends))


def plain(kept: torch.Tensor | Stored) -> torch.Tensor:
    """Return the numbers of what is kept, however that is."""
    return kept.plain() if isinstance(kept, Stored) else kept


def padding(width: int) -> int:
    """Return how many bytes lie between the numbers of a row of int8 and its scales."""
    return -width % ALIGNED


def packed_width(parts: tuple[int, ...]) -> int:
    """Return the bytes of a row of int8."""
    return sum(parts) + padding(sum(parts)) + ALIGNED * len(parts)


def packed(x: torch.Tensor, parts: tuple[int, ...]) -> torch.Tensor:
    """Return numbers `[..., D]` as rows of int8 `[..., W]`; a part with a number that is not finite becomes NaN."""
    numbers, scales = [], []
    for piece in x.float().split(parts, dim=-1):
        most = piece.abs().amax(-1, keepdim=True)
        is_whole = most.isfinite()
        times = torch.where(is_whole & (most > 0), LARGEST / most, 0)
        numbers.append(torch.where(is_whole, (piece * times).round(), 1))  # 1 · NaN
        scales.append(torch.where(is_whole, most / LARGEST, torch.nan))
    octets = F.pad(torch.cat(numbers, dim=-1).to(torch.int8), (0, padding(x.shape[-1])))
    return torch.cat((octets, torch.cat(scales, dim=-1).view(torch.int8)), dim=-1)


def unpacked(rows: torch.Tensor, parts: tuple[int, ...]) -> torch.Tensor:
    """Return the numbers `[..., D]` in f32 of rows of int8 `[..., W]`."""
    width, begin = sum(parts), rows.shape[-1] - ALIGNED * len(parts)
    scales = rows[..., begin:].contiguous().view(torch.float32)  # [..., parts]
    numbers = rows[..., :width].split(parts, dim=-1)
    return torch.cat([piece * scale for piece, scale in zip(numbers, scales.split(1, -1), strict=True)], dim=-1)
