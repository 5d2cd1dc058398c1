"""What machines can do at best: memory, its rate, and the rate of matrix products."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import unknown
from .measure import ceilings


@dataclass(frozen=True)
class Hardware:
    """GiB of memory, GB/s that it is read at, and TFLOP/s of dense matrix products in the dtype of so many bytes.

    On the machine at hand, `device` is what torch calls it: what is expected can be measured there too, beside what is
    the best.
    """

    memory_gib: float
    gb_per_second: float
    tflop_per_second: float
    bytes_per_number: int = 2
    device: str | None = None


# vendors' data sheets; dense bf16 with accumulation in single precision
HARDWARE = {
    "h100": Hardware(80e9 / 2**30, 3350, 989),
    "h200": Hardware(141e9 / 2**30, 4800, 989),
    "a100": Hardware(80e9 / 2**30, 2039, 312),
    "rtx-4090": Hardware(24, 1008, 165.2),
}


def hardware_of(name: str, given: dict[str, float | None]) -> Hardware:
    """Return hardware by name ("this" measures the machine at hand), with what is given in place of its own.

    Raises:
        UserError: an unknown name.
    """
    name = name.lower()
    if name != "this" and name not in HARDWARE:
        raise unknown("hardware", name, ["this", *HARDWARE])
    known = this_machine() if name == "this" else HARDWARE[name]
    stated: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    return replace(known, **stated)


def this_machine() -> Hardware:
    """Measure the GPU at hand in bf16, or the CPU in single precision where there is none."""
    if torch.cuda.is_available():
        rates, memory = ceilings("cuda", torch.bfloat16), torch.cuda.get_device_properties(0).total_memory
        return Hardware(memory / 2**30, rates["GB/s"], rates["GFLOP/s"] / 1e3, device="cuda")
    rates, memory = ceilings(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(memory / 2**30, rates["GB/s"], rates["GFLOP/s"] / 1e3, bytes_per_number=4, device="cpu")
