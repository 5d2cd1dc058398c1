"""What machines can do at best: memory, its rate, and the rate of matrix products."""

import os
from dataclasses import dataclass

from .measure import ceilings


@dataclass(frozen=True)
class Hardware:
    """GiB of memory, GB/s that it is read at, and TFLOP/s of dense matrix products in the dtype of so many bytes.

    On the machine at hand what is expected can be measured too, beside what is the best.
    """

    memory_gib: float
    gb_per_second: float
    tflop_per_second: float
    bytes_per_number: int = 2
    at_hand: bool = False


# vendors' data sheets; dense bf16 with accumulation in single precision
HARDWARE = {
    "h100": Hardware(80e9 / 2**30, 3350, 989),
    "h200": Hardware(141e9 / 2**30, 4800, 989),
    "a100": Hardware(80e9 / 2**30, 2039, 312),
    "rtx-4090": Hardware(24, 1008, 165.2),
}


def this_machine() -> Hardware:
    """Measure the CPU at hand, in single precision."""
    rates = ceilings()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware(memory, rates["GB/s"], rates["GFLOP/s"] / 1e3, bytes_per_number=4, at_hand=True)
