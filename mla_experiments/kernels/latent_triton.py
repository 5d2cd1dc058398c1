"""Attention over latents in Triton: a split-context kernel for GPUs.

One new token gives a GPU little to do at once, so the context is cut into splits that run side by side (Dao et al.
2023, Flash-Decoding); each keeps the running maximum and sum of Milakov & Gimelshein 2018 (Online normalizer
calculation for softmax, algorithm 3), and a second kernel joins them. Queries of all heads and of several new tokens
are rows of one matrix, and a latent is loaded once as key and as value.

With TRITON_INTERPRET=1 it runs on a CPU, slowly: that is how it is tested without a GPU.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.utils.flop_counter import register_flop_formula
from triton.runtime.interpreter import InterpretedFunction

from .plain import NOT_PLAIN, is_plain

PROGRAMS_PER_PROCESSOR = 2  # enough to hide a program's waiting behind another's work
PROCESSORS_INTERPRETED = 4


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


def pays(query) -> bool:
    """Whether it is meant for such queries; on a CPU it is interpreted, for tests alone."""
    return query.device.type == "cuda"


def why_not(query, latents, value_width, mask) -> str | None:
    """Return what it cannot serve."""
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it knows f32, bf16 and f16, not {query.dtype}"
    if value_width > 512:
        return f"latents of {value_width} are wider than 512"
    if not is_plain(query, latents, mask):
        return NOT_PLAIN
    return None


def attend_latents(query, latents, value_width, mask, scale):
    """Return `[B, H, T, value_width]`: see `latent.attend_latents`."""
    return torch.ops.mla_experiments.attend_latents_in_triton(query, latents, value_width, mask, scale)


def tiles_for(num_rows: int, width: int, value_width: int, element_size: int) -> Tiles:
    """Return the tiles for so many query rows of a sequence, found by `benchmarks/triton_tiles.py`."""
    rows = 16 if num_rows <= 16 or value_width > 256 else 32
    # 40 KiB of latents at a time: two or three stages of the pipeline fit into shared memory
    tokens = max(16, min(64, 40960 // (element_size * _padded(width, value_width)) // 16 * 16))
    return Tiles(rows, 1 << (tokens.bit_length() - 1), 8 if rows * _power(value_width) > 4096 else 4, 2)


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

    rotary = width - value_width
    tiles = tiles or tiles_for(num_rows, width, value_width, query.element_size())
    row_blocks = triton.cdiv(num_rows, tiles.rows)
    num_splits, split_length = splits(context, batch * row_blocks, tiles.tokens, query.device)

    partial = torch.empty((batch, num_rows, num_splits, value_width), dtype=torch.float32, device=query.device)
    log_sums = torch.empty((batch, num_rows, num_splits), dtype=torch.float32, device=query.device)
    _attend_split[(batch, row_blocks, num_splits)](
        rows, latents, rows if mask is None else mask, partial, log_sums,
        scale, num_rows, num_new, context, split_length, num_splits,
        rows.stride(0), rows.stride(1), latents.stride(0), latents.stride(1), *mask_strides,
        RANK=value_width, ROTARY=rotary, RANK_BLOCK=_power(value_width), ROTARY_BLOCK=_power(rotary),
        ROWS=tiles.rows, BLOCK=tiles.tokens, MASK=kind, WIDE=INTERPRETED,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    output = torch.empty((batch, num_rows, value_width), dtype=query.dtype, device=query.device)
    _join[(batch * num_rows,)](partial, log_sums, output, num_splits, RANK=value_width, RANK_BLOCK=_power(value_width))
    return output.view(batch, num_heads, num_new, value_width)


def _power(width: int) -> int:
    """The power of two that holds a width, at least 16, which tensor cores want; 0 for nothing."""
    return max(16, triton.next_power_of_2(width)) if width else 0


def _padded(width: int, value_width: int) -> int:
    return _power(value_width) + _power(width - value_width)


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


def splits(context: int, programs: int, block: int, device: torch.device) -> tuple[int, int]:
    """Return how many splits keep every processor busy, and the tokens of each, whole blocks."""
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    else:
        processors = PROCESSORS_INTERPRETED
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
def _attend_split(
    query, latents, mask, partial, log_sums,
    scale, num_rows, num_new, context, split_length, num_splits,
    q_batch, q_row, l_batch, l_token, m_batch, m_new, m_token,
    RANK: tl.constexpr, ROTARY: tl.constexpr, RANK_BLOCK: tl.constexpr, ROTARY_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of query rows over one split of the context: its normalised output and the log of its sum."""
    batch, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ranks, turns = tl.arange(0, RANK_BLOCK), RANK + tl.arange(0, max(ROTARY_BLOCK, 1))
    real, in_rank, in_width = (rows < num_rows)[:, None], ranks < RANK, turns < RANK + ROTARY
    q_start = query + batch * q_batch + rows[:, None] * q_row
    q_latent = tl.load(q_start + ranks[None, :], mask=real & in_rank[None, :], other=0.0)  # [ROWS, RANK_BLOCK]
    if ROTARY > 0:
        q_rotary = tl.load(q_start + turns[None, :], mask=real & in_width[None, :], other=0.0)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, RANK_BLOCK], tl.float32)
    begin = split * split_length
    end = tl.minimum(begin + split_length, context)
    for start in range(begin, end, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < end
        at = latents + batch * l_batch + tokens[:, None].to(tl.int64) * l_token
        latent = tl.load(at + ranks[None, :], mask=inside[:, None] & in_rank[None, :], other=0.0)
        scores = _dot(q_latent, tl.trans(latent), WIDE)  # [ROWS, BLOCK]
        if ROTARY > 0:
            key = tl.load(at + turns[None, :], mask=inside[:, None] & in_width[None, :], other=0.0)
            scores += _dot(q_rotary, tl.trans(key), WIDE)
        scores = scores * scale
        seen = inside[None, :] & real
        if MASK > 0:
            m_at = mask + batch * m_batch + (rows % num_new)[:, None] * m_new + tokens[None, :] * m_token
            if MASK == 1:
                seen = seen & (tl.load(m_at, mask=seen, other=0) != 0)
            else:
                scores += tl.load(m_at, mask=seen, other=0.0).to(tl.float32)
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen nothing yet
        weights = tl.exp(scores - finite[:, None])
        shrink = tl.exp(top - finite)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = mixed * shrink[:, None] + _dot(weights.to(latent.dtype), latent, WIDE)
        top = new_top

    place = (batch * num_rows + rows) * num_splits + split
    sums = tl.where(total > 0, total, 1.0)
    tl.store(log_sums + place, tl.where(total > 0, top + tl.log(sums), float("-inf")), mask=rows < num_rows)
    tl.store(partial + place[:, None] * RANK + ranks[None, :], mixed / sums[:, None], mask=real & in_rank[None, :])


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
        weight = tl.exp(log_sum - finite)
        shrink = tl.exp(top - finite)
        part = tl.load(partial + place * RANK + ranks, mask=ranks < RANK, other=0.0)
        mixed = mixed * shrink + part * weight
        total = total * shrink + weight
        top = new_top
    mixed = mixed / tl.where(total > 0, total, 1.0)
    tl.store(output + row * RANK + ranks, mixed.to(output.dtype.element_ty), mask=ranks < RANK)
