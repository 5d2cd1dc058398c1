"""Keep freed memory on the heap: training and evaluation free and ask for the same large blocks again and again.

glibc hands blocks above a threshold back to the system at once, and the next step pays for fresh pages, zeroed one by
one: up to half the time of a step on a CPU. mallopt(3) sets the thresholds.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks; return whether it will. Does nothing where the C library is another."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
