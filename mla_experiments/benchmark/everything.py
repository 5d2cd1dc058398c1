"""All that a machine should answer, in one command: each part is saved as it ends, so that nothing measured is lost.

On a GPU in bf16 at the sizes that such a card is bought for, on a CPU in single precision and small. Times stand beside
the machine's own rates, measured in the same run.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..allocator import keep_freed_memory
from ..errors import UserError, lacks_memory, reason_of
from ..kernels import latent
from ..kernels.stored import STORED
from ..manifest import write_json
from ..markdown import table
from ..modeling import device
from ..modeling.attention import find
from .costs import training_flops_per_token
from .decode import bytes_per_token, cache_bytes, decode_step, timed_steps
from .measure import ceilings, flag, interleaved, interleaved_on_the_card, machine, roofline, spread
from .prefill import timed_prompts
from .training import MECHANISMS, config_of, contestants, training_step

FIGURE = None
SUMMARY = "summary.md"
MEMORY_USED = 0.85  # of what is free on a GPU, at most
LATENT_SHAPES = {"reference": (16, 128, 16), "DeepSeek-V3": (128, 512, 64)}  # query heads, d_c, d_R


@dataclass
class Arguments:
    """All that a machine should answer, each part saved as it ends; on a CPU small."""

    out: str = flag("bench-all", "folder to fill: a JSON file for each part, and summary.md")
    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    minutes: float = flag(40.0, "after which no further part begins")


@dataclass(frozen=True)
class Sizes:
    """What is measured on a kind of device."""

    dtype: torch.dtype
    steps: tuple[tuple[int, int], ...]  # batch and context of decoding steps
    prompts: tuple[int, ...]
    sequences: tuple[int, int]  # batch and length of a training step
    caches: tuple[tuple[int, int], ...]  # batch and context of caches whose memory is looked at
    rounds: int


GPU = Sizes(
    torch.bfloat16, tuple((batch, context) for context in (1024, 8192, 65_536) for batch in (1, 8, 64)),
    (2048, 8192, 32_768), (32, 1024), ((8, 8192), (8, 65_536)), 10,
)  # fmt: skip
CPU = Sizes(torch.float32, ((1, 128), (1, 2048), (8, 2048)), (512, 2048), (2, 256), ((8, 2048),), 3)


def measure(given: Arguments, sizes: Sizes | None = None) -> list[dict]:
    """Run all parts and return a row for each: what was measured, how long it took, or why there is none.

    Args:
        given: see there.
        sizes: what to measure; by default what suits the device.

    Raises:
        UserError: the folder is not empty, or cannot be made.
    """
    folder, kind = Path(given.out), device().type
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"out={folder} is there already and is kept; choose another name")
    given = replace(given, attention=[find(name) for name in given.attention])
    folder.mkdir(parents=True, exist_ok=True)
    sizes = sizes or (GPU if kind == "cuda" else CPU)
    keep_freed_memory()
    ceiling = ceilings(kind, sizes.dtype)
    begun, summary, texts = time.monotonic(), [], []
    for name, part in PARTS.items():
        start = time.monotonic()
        rows: list[dict] = []
        why: str | None = f"{given.minutes:g} minutes were over"
        if start - begun < 60 * given.minutes:
            rows, why = collected(part(given.attention, sizes, ceiling))
        summary.append({"part": name, "rows": len(rows), "seconds": time.monotonic() - start, "ended early": why})
        write_json(folder / f"{name}.json", {"machine": machine(), "ceilings": ceiling, "rows": rows, "why": why})
        texts.append(
            f"## {name}\n\n{table(rows) if rows else ''}{f'{chr(10)}{chr(10)}Ended early: {why}' if why else ''}"
        )
        rates = ", ".join(f"{value:,.0f} {unit}" for unit, value in ceiling.items())
        heading = f"# {machine()['gpu'] or machine()['cpu']}\n\n{kind}, {sizes.dtype}; at best {rates}."
        (folder / SUMMARY).write_text("\n\n".join((heading, *texts)) + "\n", encoding="utf-8")
    return summary


def collected(rows: Iterator[dict]) -> tuple[list[dict], str | None]:
    """Return what a part yields, and why it ended before its end, if it did: what came before is kept."""
    found: list[dict] = []
    try:
        for row in rows:
            found.append(row)
    except (
        UserError,
        RuntimeError,
        ImportError,
        ValueError,
    ) as error:  # a library that is not as it says, on this card
        return found, "not enough memory" if lacks_memory(error) else reason_of(error)
    return found, None


def kernels(attention: list[str], sizes: Sizes, ceiling: dict) -> Iterator[dict]:
    """Yield attention over latents by every backend that is usable here: its error against float64, and its time."""
    for shape, (heads, rank, rotary) in LATENT_SHAPES.items():
        for batch, context in sizes.steps:
            query = torch.randn(batch, heads, 1, rank + rotary, device=device(), dtype=sizes.dtype)
            latents = torch.randn(batch, context, rank + rotary, device=device(), dtype=sizes.dtype)
            served = {
                backend.__name__.rsplit("_", 1)[-1]: partial(backend.attend_latents, query, latents, rank, None, 0.1)
                for backend in latent.usable()
                if backend.pays(query) and backend.why_not(query, latents, rank, None) is None
            }
            few = query[:1].double(), latents[:1].double()
            exact = latent.load("torch").attend_latents(*few, rank, None, 0.1)
            errors = {name: (run()[:1].double() - exact).abs().max().item() for name, run in served.items()}
            flops = 2 * batch * heads * context * (2 * rank + rotary)
            for name, seconds in interleaved_on_the_card(served, sizes.rounds).items():
                row: dict[str, Any] = {"shape": shape, "batch": batch, "context": context, "backend": name}
                row |= spread(seconds)
                row |= roofline(row["ms"] / 1e3, flops, latents.nbytes, ceiling)
                yield row | {"error": f"{errors[name]:.1e}"}


def decoding(attention: list[str], sizes: Sizes, ceiling: dict) -> Iterator[dict]:
    """Yield a decoding step of every mechanism, ours and transformers', and the bytes of its cache."""
    models = on_device(attention, max(context for _, context in sizes.steps) + 8, sizes)
    for batch, context in sizes.steps:
        for names in fitting(models, batch, context):
            made = {name: decode_step(models[name], batch, context) for name in names}
            steps = {name: (step, cache_bytes(cache)) for name, (step, cache) in made.items()}
            yield from timed_steps(models, steps, batch, context, sizes.rounds, ceiling)


def fitting(models: dict[str, PreTrainedModel], batch: int, context: int) -> Iterator[list[str]]:
    """Yield names of models whose caches fit into a GPU's memory side by side; who does not even alone is left out.

    transformers' caches are copied, layer by layer, as they grow.
    """
    room = torch.cuda.mem_get_info()[0] * MEMORY_USED if device().type == "cuda" else math.inf
    group: list[str] = []
    taken = 0.0
    for name, model in models.items():
        needed = batch * context * bytes_per_token(model) * (1 + 2 / model.config.num_hidden_layers)
        if needed > room:
            print(f"{name} left out at batch {batch}, context {context}: its cache needs {needed / 2**30:,.0f} GiB")
            continue
        if taken + needed > room:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += needed
    if group:
        yield group


def prompts(attention: list[str], sizes: Sizes, ceiling: dict) -> Iterator[dict]:
    """Yield prompt tokens a second of every mechanism, ours and transformers'."""
    models = on_device(attention, max(sizes.prompts), sizes)
    yield from timed_prompts(models, sizes.prompts, sizes.rounds, ceiling)


def training(attention: list[str], sizes: Sizes, ceiling: dict) -> Iterator[dict]:
    """Yield a training step at the reference shape: tokens a second, and the share of the best rate of products."""
    batch, length = sizes.sequences
    for name in attention:
        models = contestants([name], length, device().type)
        if device().type == "cuda":
            models |= {f"{one}, compiled": compiled(model) for one, model in models.items()}
        steps = {one: training_step(model, length, batch) for one, model in models.items()}
        flops = training_flops_per_token(config_of(name, length), length)
        for one, seconds in interleaved(steps, sizes.rounds).items():
            row: dict[str, Any] = {"model": one, **spread(seconds)}
            row["tokens/s"] = 1e3 * batch * length / row["ms"]
            yield row | {"MFU, %": 100 * row["tokens/s"] * flops / 1e9 / ceiling["GFLOP/s"]}


def compiled(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model whose layers are compiled; they are alike, so that it takes the time of one."""
    copy: Any = deepcopy(model)
    for layer in copy.model.layers:
        layer.compile()
    return copy


def caches(attention: list[str], sizes: Sizes, ceiling: dict) -> Iterator[dict]:
    """Yield the bytes of a token in the cache in each dtype, and on a GPU the peak that its allocator saw in a step."""
    for (batch, context), name in itertools.product(sizes.caches, attention):
        model = on_device([name], context + 8, sizes)[f"{name}, ours"]
        for kept in (None, *(name for name in ("bf16", "int8") if STORED[name] != sizes.dtype)):
            step, cache = decode_step(model, batch, context, cache_dtype=kept)
            row = {"model": name, "batch": batch, "context": context, "cache": kept or str(sizes.dtype)[6:]}
            row |= {"bytes/token": cache_bytes(cache) / batch / context, "cache MiB": cache_bytes(cache) / 2**20}
            if device().type == "cuda":
                step()  # the first one makes room
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
                step()
                row["held MiB"] = held / 2**20
                row["peak of a step, MiB"] = (torch.cuda.max_memory_allocated() - held) / 2**20
            del step, cache
            yield row


def on_device(attention: list[str], length: int, sizes: Sizes) -> dict[str, PreTrainedModel]:
    """Return ours and transformers' models, for inference on the device at hand."""
    models: dict[str, Any] = contestants(attention, length, device().type)
    return {name: model.to(sizes.dtype).eval() for name, model in models.items()}


PARTS: dict[str, Callable[[list[str], Sizes, dict], Iterator[dict]]] = {  # the most valuable first
    "kernels": kernels, "decoding": decoding, "training": training, "prompts": prompts, "caches": caches,
}  # fmt: skip
