"""Attention over latents in Triton: a split-context kernel for GPUs.

One new token gives a GPU little to do at once, so the context is cut into splits that run side by side (Dao et al.
2023, Flash-Decoding); each keeps the running maximum and sum of Milakov & Gimelshein 2018 (Online normalizer
calculation for softmax, algorithm 3), and a second kernel joins them. Queries of all heads and of several new tokens
are rows of one matrix, and a latent is loaded once as key and as value.

With TRITON_INTERPRET=1 it runs on a CPU, slowly: that is how it is tested without a GPU.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch.utils.flop_counter import register_flop_formula
from triton.runtime.interpreter import InterpretedFunction

from .plain import NOT_PLAIN, is_followed, is_plain

PROGRAMS_PER_PROCESSOR = 2  # enough to hide a program's waiting behind another's work
INTERPRETED_CARD = 4, 227 * 1024  # processors, and bytes of shared memory
LOG2_E = math.log2(math.e)  # the exponential that a GPU has is of base 2


@dataclass(frozen=True)
class Tiles:
    """What one program of the kernel works on at a time.

    Attributes:
        rows: of the queries.
        tokens: of the context.
        warps: that share the work.
        stages: of the pipeline that fetches tokens.
    """

    rows: int
    tokens: int
    warps: int
    stages: int


def why_not_here() -> str | None:
    """Return what this machine lacks."""
    if torch.cuda.is_available() or INTERPRETED:
        return None
    return "needs a CUDA device (or TRITON_INTERPRET=1 in the environment, to test it)"


def pays(query: torch.Tensor) -> bool:
    """Whether it is meant for such queries; on a CPU it is interpreted, for tests alone."""
    return query.device.type == "cuda"


def why_not(query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None) -> str | None:
    """Return what it cannot serve."""
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it knows f32, bf16 and f16, not {query.dtype}"
    if value_width > 512:
        return f"latents of {value_width} are wider than 512"
    if not is_plain(query, latents, mask):
        return NOT_PLAIN
    return None


def attend_latents(
    query: torch.Tensor, latents: torch.Tensor, value_width: int, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return `[B, H, T, value_width]`: see `latent.attend_latents`."""
    if is_followed() or torch.autograd._profiler_enabled():  # as an operator it has a name, and is counted
        return torch.ops.mla_experiments.attend_latents_in_triton(query, latents, value_width, mask, scale)
    return attend_in_tiles(query, latents, value_width, mask, scale)


@cache
def tiles_for(num_rows: int, width: int, value_width: int, element_size: int, shared_memory: int) -> Tiles:
    """Return the tiles for so many query rows of a sequence: `benchmarks/triton_tiles.py` found what is the quickest.

    Args:
        num_rows: of queries.
        width: of latents, the rotary key included.
        value_width: d_c.
        element_size: bytes of a number.
        shared_memory: bytes that a program may use.
    """
    padded = element_size * (_power(value_width) + _power(width - value_width))
    most = min(64, num_rows) if value_width > 256 and element_size == 2 else min(16, num_rows)
    for rows, (tokens, stages) in itertools.product((64, 32, 16), ((128, 3), (64, 3), (64, 2), (32, 2))):
        if rows <= max(16, most) and (rows + stages * tokens) * padded <= shared_memory:
            return Tiles(rows, tokens, 8 if rows > 32 else 4, stages)
    return Tiles(16, 16, 4, 2)


def attend_in_tiles(query, latents, value_width, mask, scale, tiles: Tiles | None = None):
    """Return what `attend_latents` does, with tiles of one's choice."""
    batch, num_heads, num_new, width = query.shape
    context, num_rows = latents.shape[1], num_heads * num_new
    rows = query.reshape(batch, num_rows, width)
    latents = latents if latents.stride(-1) == 1 else latents.contiguous()
    if mask is None and num_new > 1:
        mask = torch.ones(num_new, num_new, dtype=torch.bool, device=query.device).tril()[None, None]
    kind = 0 if mask is None else 1 if mask.dtype == torch.bool else 2
    mask_strides = (0, 0, 0) if mask is None else (mask.stride(0) * (mask.shape[0] > 1), mask.stride(2), mask.stride(3))

    processors, shared_memory = card(query.device)
    tiles = tiles or tiles_for(num_rows, width, value_width, query.element_size(), shared_memory)
    row_blocks = triton.cdiv(num_rows, tiles.rows)
    num_splits, split_length = splits(context, batch * row_blocks, tiles.tokens, processors)

    output = torch.empty((batch, num_rows, value_width), dtype=query.dtype, device=query.device)
    partial, log_sums = output, query  # one split is the whole: it writes the output, and no sums
    if num_splits > 1:
        partial = torch.empty((batch, num_rows, num_splits, value_width), dtype=torch.float32, device=query.device)
        log_sums = torch.empty((batch, num_rows, num_splits), dtype=torch.float32, device=query.device)
    _attend_split[(batch, row_blocks, num_splits)](
        rows, latents, rows if mask is None else mask, partial, log_sums,
        scale * LOG2_E, num_rows, num_new, context, split_length, num_splits,
        rows.stride(0), rows.stride(1), latents.stride(0), latents.stride(1), *mask_strides,
        RANK=value_width, ROTARY=width - value_width,
        RANK_BLOCK=_power(value_width), ROTARY_BLOCK=_power(width - value_width),
        ROWS=tiles.rows, BLOCK=tiles.tokens, MASK=kind, WHOLE=num_splits == 1, WIDE=INTERPRETED,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if num_splits > 1:
        _join[(batch * num_rows,)](
            partial, log_sums, output, num_splits, RANK=value_width, RANK_BLOCK=_power(value_width)
        )
    return output.view(batch, num_heads, num_new, value_width)


@cache
def card(device: torch.device) -> tuple[int, int]:
    """Return how many processors a device has, and the bytes of shared memory of each."""
    if device.type != "cuda":
        return INTERPRETED_CARD
    properties = torch.cuda.get_device_properties(device)
    shared: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's own stub lacks it
    return properties.multi_processor_count, shared


def _power(width: int) -> int:
    """The power of two that holds a width, at least 16, which tensor cores want; 0 for nothing."""
    return max(16, triton.next_power_of_2(width)) if width else 0


# an operator, so that profilers and FLOP counters see it
_operators = torch.library.Library("mla_experiments", "FRAGMENT")
_operators.define(
    "attend_latents_in_triton(Tensor query, Tensor latents, int value_width, Tensor? mask, float scale) -> Tensor"
)
for _device in ("CUDA", "CPU"):  # on a CPU interpreted
    _operators.impl("attend_latents_in_triton", attend_in_tiles, _device)


@register_flop_formula(torch.ops.mla_experiments.attend_latents_in_triton)
def _flops(query_shape, latents_shape, value_width, *_, **__):
    batch, num_heads, num_new, width = query_shape
    return 2 * batch * num_heads * num_new * latents_shape[1] * (width + value_width)


def splits(context: int, programs: int, block: int, processors: int) -> tuple[int, int]:
    """Return how many splits keep every processor busy, and the tokens of each, whole blocks."""
    wanted = max(1, PROGRAMS_PER_PROCESSOR * processors // programs)
    blocks = triton.cdiv(context, block)
    length = block * triton.cdiv(blocks, min(wanted, blocks))
    return triton.cdiv(context, length), length


@triton.jit
def _dot(a, b, WIDE: tl.constexpr):
    """Multiply; the interpreter, which would take the bits of bf16 for integers, has them in f32."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b, input_precision="ieee")


INTERPRETED = isinstance(_dot, InterpretedFunction)


@triton.jit
def _attend_block(
    q_latent, q_rotary, at, ranks, turns, tokens, real, m_at, m_token, scale, end, top, total, mixed,
    RANK: tl.constexpr, ROTARY: tl.constexpr, RANK_BLOCK: tl.constexpr, ROTARY_BLOCK: tl.constexpr,
    MASK: tl.constexpr, CUT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of tokens, CUT at the end of the split or not: the new maximum, sum and mixture."""
    inside = tokens < end
    if CUT or RANK < RANK_BLOCK:
        latent = tl.load(at + ranks[None, :], mask=inside[:, None] & (ranks < RANK)[None, :], other=0.0)
    else:
        latent = tl.load(at + ranks[None, :])  # [BLOCK, RANK_BLOCK]
    scores = _dot(q_latent, tl.trans(latent), WIDE)  # [ROWS, BLOCK]
    if ROTARY > 0:
        if CUT or ROTARY < ROTARY_BLOCK:
            key = tl.load(at + turns[None, :], mask=inside[:, None] & (turns < RANK + ROTARY)[None, :], other=0.0)
        else:
            key = tl.load(at + turns[None, :])
        scores += _dot(q_rotary, tl.trans(key), WIDE)
    scores = scores * scale
    if MASK == 1:
        seen = inside[None, :] & real
        scores = tl.where(tl.load(m_at + tokens[None, :] * m_token, mask=seen, other=0) != 0, scores, float("-inf"))
    elif MASK == 2:
        seen = inside[None, :] & real
        scores += tl.load(m_at + tokens[None, :] * m_token, mask=seen, other=0.0).to(tl.float32) * 1.4426950408889634
    if CUT:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    finite = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen nothing yet
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(top - finite)
    total = total * shrink + tl.sum(weights, axis=1)
    mixed = mixed * shrink[:, None] + _dot(weights.to(latent.dtype), latent, WIDE)
    return new_top, total, mixed


@triton.jit
def _attend_split(
    query, latents, mask, partial, log_sums,
    scale, num_rows, num_new, context, split_length, num_splits,
    q_batch, q_row, l_batch, l_token, m_batch, m_new, m_token,
    RANK: tl.constexpr, ROTARY: tl.constexpr, RANK_BLOCK: tl.constexpr, ROTARY_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of query rows over one split of the context: its normalised output and the log of its sum.

    Logarithms and exponentials are of base 2, and `scale` is times log2(e).
    """
    batch, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ranks, turns = tl.arange(0, RANK_BLOCK), RANK + tl.arange(0, max(ROTARY_BLOCK, 1))
    real, in_rank, in_width = (rows < num_rows)[:, None], ranks < RANK, turns < RANK + ROTARY
    q_start = query + batch * q_batch + rows[:, None] * q_row
    q_latent = tl.load(q_start + ranks[None, :], mask=real & in_rank[None, :], other=0.0)  # [ROWS, RANK_BLOCK]
    q_rotary = q_latent
    if ROTARY > 0:
        q_rotary = tl.load(q_start + turns[None, :], mask=real & in_width[None, :], other=0.0)
    m_at = mask + batch * m_batch + (rows % num_new)[:, None] * m_new

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, RANK_BLOCK], tl.float32)
    begin = split * split_length
    end = tl.minimum(begin + split_length, context)
    whole_blocks = begin + (end - begin) // BLOCK * BLOCK
    for start in range(begin, whole_blocks, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        at = latents + batch * l_batch + tokens[:, None].to(tl.int64) * l_token
        top, total, mixed = _attend_block(
            q_latent, q_rotary, at, ranks, turns, tokens, real, m_at, m_token, scale, end, top, total, mixed,
            RANK, ROTARY, RANK_BLOCK, ROTARY_BLOCK, MASK, False, WIDE,
        )  # fmt: skip
    if whole_blocks < end:
        tokens = whole_blocks + tl.arange(0, BLOCK)
        at = latents + batch * l_batch + tokens[:, None].to(tl.int64) * l_token
        top, total, mixed = _attend_block(
            q_latent, q_rotary, at, ranks, turns, tokens, real, m_at, m_token, scale, end, top, total, mixed,
            RANK, ROTARY, RANK_BLOCK, ROTARY_BLOCK, MASK, True, WIDE,
        )  # fmt: skip

    sums = tl.where(total > 0, total, 1.0)
    mixed = mixed / sums[:, None]
    if WHOLE:
        place = (batch * num_rows + rows)[:, None] * RANK + ranks[None, :]
        tl.store(partial + place, mixed.to(partial.dtype.element_ty), mask=real & in_rank[None, :])
    else:
        place = (batch * num_rows + rows) * num_splits + split
        tl.store(log_sums + place, tl.where(total > 0, top + tl.log2(sums), float("-inf")), mask=rows < num_rows)
        tl.store(partial + place[:, None] * RANK + ranks[None, :], mixed, mask=real & in_rank[None, :])


@triton.jit
def _join(partial, log_sums, output, num_splits, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr):
    """Weigh the splits of one query row by their sums; a row that sees nothing (padding) gives zeros."""
    row = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, RANK_BLOCK)
    top = float("-inf")
    total = 0.0
    mixed = tl.zeros([RANK_BLOCK], tl.float32)
    for split in range(num_splits):
        place = row * num_splits + split
        log_sum = tl.load(log_sums + place)
        new_top = tl.maximum(top, log_sum)
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(log_sum - finite)
        shrink = tl.exp2(top - finite)
        part = tl.load(partial + place * RANK + ranks, mask=ranks < RANK, other=0.0)
        mixed = mixed * shrink + part * weight
        total = total * shrink + weight
        top = new_top
    mixed = mixed / tl.where(total > 0, total, 1.0)
    tl.store(output + row * RANK + ranks, mixed.to(output.dtype.element_ty), mask=ranks < RANK)
