"""How a CPU's memory is asked for, where Linux lets one choose: freed blocks are kept, caches lie in large pages.

Training and evaluation free and ask for the same large blocks again and again. glibc hands blocks above a threshold
back to the system at once, and the next step pays for fresh pages, zeroed one by one: up to half the time of a step.
mallopt(3) sets the thresholds, at the price of gaps that large blocks of other sizes leave. Decoding reads a whole
cache at every step: in pages of 2 MiB in place of 4 KiB it finds their addresses sooner, see madvise(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands begin with it, most of which need no model
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
NEVER = 2**31 - 1
MADV_HUGEPAGE, LARGE_PAGE, PAGE = 14, 2 << 20, 4096  # from mman.h; bytes


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks; return whether it will. Does nothing where the C library is another."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))


def prefer_large_pages(memory: torch.Tensor) -> None:
    """Ask Linux to back memory that has not been written yet with large pages, as far as it spans whole ones."""
    if not sys.platform.startswith("linux") or memory.device.type != "cpu" or memory.nbytes < 2 * LARGE_PAGE:
        return
    start = -(-memory.data_ptr() // PAGE) * PAGE
    length = memory.data_ptr() + memory.nbytes - start
    with contextlib.suppress(OSError, AttributeError):  # a C library without it: nothing is lost but speed
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_HUGEPAGE)
