"""Attention over latents in Triton: a split-context kernel for GPUs.

One new token gives a GPU little to do at once, so the context is cut into splits that run side by side (Dao et al.
2023, Flash-Decoding); each keeps the running maximum and sum of Milakov & Gimelshein 2018 (Online normalizer
calculation for softmax, algorithm 3), and a second kernel joins them. Queries of all heads and of several new tokens
are rows of one matrix, and a latent is loaded once as key and as value.

With TRITON_INTERPRET=1 it runs on a CPU, slowly: that is how it is tested without a GPU.
"""

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from .plain import NOT_PLAIN, is_plain

PROGRAMS_PER_PROCESSOR = 2  # enough to hide a program's waiting behind another's work
PROCESSORS_INTERPRETED = 4


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
    batch, num_heads, num_new, width = query.shape
    context, num_rows = latents.shape[1], num_heads * num_new
    rows = query.reshape(batch, num_rows, width)
    latents = latents if latents.stride(-1) == 1 else latents.contiguous()
    if mask is None and num_new > 1:
        mask = torch.ones(num_new, num_new, dtype=torch.bool, device=query.device).tril()[None, None]
    kind = 0 if mask is None else 1 if mask.dtype == torch.bool else 2
    mask_strides = (0, 0, 0) if mask is None else (mask.stride(0) * (mask.shape[0] > 1), mask.stride(2), mask.stride(3))

    rotary = width - value_width
    rank_block = max(16, triton.next_power_of_2(value_width))
    rotary_block = max(16, triton.next_power_of_2(rotary)) if rotary else 0
    row_block = 16 if num_rows <= 16 or rank_block >= 512 else 32
    # 40 KiB of latents at a time: two or three stages of the pipeline fit into shared memory
    block = max(16, min(64, 40960 // (query.element_size() * (rank_block + rotary_block)) // 16 * 16))
    block = 1 << (block.bit_length() - 1)
    row_blocks = triton.cdiv(num_rows, row_block)
    num_splits, split_length = splits(context, batch * row_blocks, block, query.device)

    partial = torch.empty((batch, num_rows, num_splits, value_width), dtype=torch.float32, device=query.device)
    log_sums = torch.empty((batch, num_rows, num_splits), dtype=torch.float32, device=query.device)
    _attend_split[(batch, row_blocks, num_splits)](
        rows, latents, rows if mask is None else mask, partial, log_sums,
        scale, num_rows, num_new, context, split_length, num_splits,
        rows.stride(0), rows.stride(1), latents.stride(0), latents.stride(1), *mask_strides,
        RANK=value_width, ROTARY=rotary, RANK_BLOCK=rank_block, ROTARY_BLOCK=rotary_block,
        ROWS=row_block, BLOCK=block, MASK=kind, WIDE=INTERPRETED,
        num_warps=8 if row_block * rank_block > 4096 else 4, num_stages=2,
    )  # fmt: skip
    output = torch.empty((batch, num_rows, value_width), dtype=query.dtype, device=query.device)
    _join[(batch * num_rows,)](partial, log_sums, output, num_splits, RANK=value_width, RANK_BLOCK=rank_block)
    return output.view(batch, num_heads, num_new, value_width)


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
