"""Linear maps of a few rows with weights in fewer bits, ours beside PyTorch's: `python benchmarks/weight_maps.py`.

Each is asked of weights that together are larger than the processor's caches, in turns, on one thread; microseconds of
the thread's own time, the least of the turns. A minute.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mla_experiments.kernels import PackedLinear, project
from mla_experiments.kernels.stored import ALIGNED, STORED, packed
from mla_experiments.markdown import table

SHAPES = ((512, 512), (1408, 512), (512, 1408), (16_384, 512))  # of the reference configuration, [out, in]
BEYOND_CACHES, TURNS = 64_000_000, 15  # bytes, in single precision


def maps(layers: list[nn.Linear]) -> dict[str, list[Callable]]:
    """Return what is compared, each for all layers; PyTorch's int8 wants numbers and scales apart."""
    found: dict[str, list[Callable]] = {}
    for name, dtype in STORED.items():
        kept = layers if name == "f32" else [PackedLinear(layer, dtype) for layer in layers]
        found[f"ours, {name}"] = [partial(project, one) for one in kept]
    width = layers[0].in_features
    rows = [packed(layer.weight, (width,)) for layer in layers]  # numbers, and behind them their scale
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        kept = [
            (row[:, :width].contiguous(), row[:, -ALIGNED:].contiguous().view(torch.float32)[:, 0].to(dtype))
            for row in rows
        ]
        found[f"torch int8, states {name}"] = [
            lambda x, own=own, dtype=dtype: torch._weight_int8pack_mm(x.to(dtype), *own) for own in kept
        ]
    return found


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    rows = []
    for num_out, num_in in SHAPES:
        count = max(1, BEYOND_CACHES // (4 * num_out * num_in))
        every = maps([nn.Linear(num_in, num_out, bias=False).requires_grad_(False) for _ in range(count)])
        for num_rows in (1, 8):
            x, best = torch.randn(num_rows, num_in), dict.fromkeys(every, float("inf"))
            for _ in range(TURNS):
                for name, calls in every.items():
                    began = time.thread_time()
                    for call in calls:
                        call(x)
                    best[name] = min(best[name], (time.thread_time() - began) / count)
            us = {name: f"{1e6 * seconds:.0f}" for name, seconds in best.items()}
            rows.append({"out x in": f"{num_out:,} x {num_in:,}", "rows": num_rows} | us)
    print(table(rows))


if __name__ == "__main__":
    main()
