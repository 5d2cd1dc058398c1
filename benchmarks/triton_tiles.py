"""Which tiles the Triton kernel of attention over latents should take: tries many, checks each, prints the fastest.

    python benchmarks/triton_tiles.py [SECONDS]

Needs a CUDA device. What it found is in `kernels/latent_triton.py`, `tiles_for`.
"""

import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from mla_experiments.benchmark.everything import LATENT_SHAPES
from mla_experiments.benchmark.measure import ceilings, interleaved_on_the_card, spread
from mla_experiments.kernels.latent_torch import attend_latents
from mla_experiments.kernels.latent_triton import Tiles, attend_in_tiles
from mla_experiments.markdown import table

STEPS = ((64, 8192), (1, 65_536))  # batch and context
CHOICES = {"rows": (16, 32, 64, 128), "tokens": (16, 32, 64, 128), "warps": (4, 8), "stages": (2, 3)}
SHARED_MEMORY = 227 * 1024  # bytes of a program, on Hopper
THREADS = 12  # that compile at once


def candidates(heads: int, width: int, value_width: int) -> list[Tiles]:
    """Return tiles whose pipeline fits into shared memory, and whose sums fit into registers."""
    every = (Tiles(*one) for one in itertools.product(*CHOICES.values()))
    return [
        one
        for one in every
        if one.rows <= max(16, heads)
        and (one.rows + one.stages * one.tokens) * width * 2 <= SHARED_MEMORY
        and one.rows * value_width <= one.warps * 32 * 160
    ]


def runs(tiles: Tiles, query, latents, value_width, exact) -> tuple[Tiles, object]:
    """Return the error of some tiles against float64, or why they cannot be."""
    try:
        found = attend_in_tiles(query, latents, value_width, None, 0.1, tiles)
    except Exception as error:  # what a card or a compiler says is not foreseen
        return tiles, f"{type(error).__name__}: {str(error)[:80]}"
    return tiles, ((found.double() - exact).norm() / exact.norm()).item()


def rows_of(shape: str, batch: int, context: int, ceiling: dict[str, float]) -> list[dict]:
    """Return a row for each choice of tiles that works, the fastest first."""
    heads, value_width, rotary = LATENT_SHAPES[shape]
    query = torch.randn(batch, heads, 1, value_width + rotary, device="cuda", dtype=torch.bfloat16)
    latents = torch.randn(batch, context, value_width + rotary, device="cuda", dtype=torch.bfloat16)
    few = query[:1], latents[:1, :1000]
    exact = attend_latents(few[0].double(), few[1].double(), value_width, None, 0.1)
    check = partial(runs, query=few[0], latents=few[1], value_width=value_width, exact=exact)
    with ThreadPoolExecutor(THREADS) as pool:
        errors = dict(pool.map(check, candidates(heads, value_width + rotary, value_width)))
    for tiles, error in errors.items():
        if not isinstance(error, float):
            print(f"{shape}, {tiles}: {error}")
    good = {tiles: error for tiles, error in errors.items() if isinstance(error, float) and error < 1e-2}
    attend = partial(attend_in_tiles, query, latents, value_width, None, 0.1)
    tasks = {str(tiles): partial(attend, tiles) for tiles in good}
    found = interleaved_on_the_card(tasks, 5)
    rows = []
    for tiles, error in good.items():
        times = spread(found[str(tiles)])
        share = 100 * latents.nbytes / times["ms"] / 1e6 / ceiling["GB/s"]
        row = {"shape": shape, "batch": batch, "context": context, **vars(tiles), **times}
        rows.append(row | {"% of bandwidth": share, "error": f"{error:.1e}"})
    return sorted(rows, key=lambda row: row["ms"])


def main() -> None:
    """Print the eight fastest tiles of every shape and step, until the time is over."""
    begun, limit = time.monotonic(), float(sys.argv[1]) if len(sys.argv) > 1 else 600
    ceiling = ceilings("cuda", torch.bfloat16)
    print(ceiling)
    for shape, (batch, context) in itertools.product(LATENT_SHAPES, STEPS):
        if time.monotonic() - begun < limit:
            print(table(rows_of(shape, batch, context, ceiling)[:8]), flush=True)


if __name__ == "__main__":
    main()
