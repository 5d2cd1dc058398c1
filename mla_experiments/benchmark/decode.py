"""Decoding: time per step from a filled cache, for every mechanism and mode, beside transformers' models.

Caches are filled with random numbers, so that a long context costs no prefill, and cut back after every step, so that
all steps are alike. Contestants take turns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from ..allocator import keep_freed_memory
from ..kernels import latent
from ..modeling import DecoderForCausalLM
from ..modeling.attention import Attention, set_decode_mode
from ..modeling.attention.checks import require
from ..modeling.cache import growing
from ..modeling.cache_name import by_name, cache_of
from .measure import ceilings, flag, flops_of, interleaved, roofline, spread
from .training import MECHANISMS, contestants

FIGURE = {"x": "context", "y": "ms", "line": "model", "panel": "batch"}


@dataclass
class Arguments:
    """Milliseconds of a decoding step against context and batch size, ours and transformers'."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    contexts: list[int] = flag([128, 512, 2048, 8192, 32768, 65536], "tokens in the cache")
    batch_sizes: list[int] = flag([1, 8], "sequences decoded together")
    modes: list[str] = flag(["auto"], "how those decode that know several ways: auto, absorb, expand, full")
    budget_gib: float = flag(16.0, "leave out a context whose caches of all contestants together are larger")
    backend: str | None = flag(None, "of MLA's decoding (`mla-experiments kernels`)")
    rounds: int = flag(9, "timed turns of each contestant, after two to warm up")


def measure(given: Arguments) -> list[dict]:
    """Return a row per contestant, context and batch size.

    `% of matmul` and `% of bandwidth` are shares of what the machine reaches on a large matrix product and in reading
    a large buffer: of the operations that the contestant itself does, and of one reading of its weights and cache.
    """
    keep_freed_memory()
    latent.force_backend(given.backend)
    ceiling, models = ceilings(), contestants(given.attention, max(given.contexts) + 8)
    for mode in given.modes:
        require(
            mode == "auto" or any(mode in modes_of(model, [mode]) for model in models.values()),
            f"decode_mode={mode} is unknown to {', '.join(models)}; choose auto, absorb, expand or full",
        )
    rows = []
    for batch in given.batch_sizes:
        for context in given.contexts:
            steps = prepared(models, given.modes, batch, context, given.budget_gib)
            flops = {name: flops_of(step) for name, (step, _) in steps.items()}
            seconds = interleaved({name: step for name, (step, _) in steps.items()}, given.rounds)
            for name, times in seconds.items():
                row = {"model": name, "batch": batch, "context": context, **spread(times)}
                row |= {"tokens/s": 1e3 * batch / row["ms"], "cache MiB": steps[name][1] / 2**20}
                read = weights_read(models[name.split(":")[0]]) + steps[name][1]
                rows.append(row | roofline(row["ms"] / 1e3, flops[name], read, ceiling))
    return rows


def prepared(
    models: dict[str, torch.nn.Module], modes: list[str], batch: int, context: int, budget_gib: float
) -> dict[str, tuple[Callable, int]]:
    """Return every contestant's step and the bytes of its cache; none if the caches together break the budget."""
    entries = [(name, mode) for name in models for mode in modes_of(models[name], modes)]
    needed = sum(batch * context * bytes_per_token(models[name], mode) for name, mode in entries)
    if needed > budget_gib * 2**30:
        print(f"batch {batch}, context {context} left out: {needed / 2**30:.1f} GiB of caches; see --budget-gib")
        return {}
    steps = {}
    for name, mode in entries:
        step, cache = decode_step(models[name], batch, context, mode)
        steps[name if mode is None else f"{name}: {mode}"] = (step, cache_bytes(cache))
    return steps


def modes_of(model: torch.nn.Module, asked: list[str]) -> list[str | None]:
    """Return the modes among those asked for that a model's layers know; where there is no choice it is left alone."""
    layers = (module for module in model.modules() if isinstance(module, Attention))
    known = {mode for layer in layers for mode in layer.decode_modes}
    return [mode for mode in asked if mode in known] if len(known) > 1 else [None]


def decode_step(
    model: torch.nn.Module, batch: int, context: int, mode: str | None = None
) -> tuple[Callable, DynamicCache]:
    """Return a function that decodes one token a sequence from a filled cache and takes it back, and that cache."""
    if mode:
        set_decode_mode(model, mode)
    cache = filled_cache(model, batch, context)
    tokens = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
    model.eval()

    @torch.inference_mode()
    def step():
        if mode:
            set_decode_mode(model, mode)
        model(tokens, **by_name(cache), use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    return step, cache


@torch.inference_mode()
def filled_cache(model: torch.nn.Module, batch: int, context: int) -> DynamicCache:
    """Return a cache of random numbers in the shapes that the model itself caches."""
    cache = DynamicCache(config=model.config)
    if isinstance(model, DecoderForCausalLM):
        cache = growing(cache)
    for index, parts in enumerate(probe(model)):
        cache.update(*(part[:, :, :1].expand(batch, -1, context, -1) for part in parts), index)
        cache.layers[index].keys.normal_()
        cache.layers[index].values.normal_()
    return cache


@torch.inference_mode()
def probe(model: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return what every layer caches of one token."""
    cache = cache_of(model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True))
    return [(layer.keys, layer.values) for layer in cache.layers]


def bytes_per_token(model: torch.nn.Module, mode: str | None = None) -> int:
    """Return what one token takes in the cache."""
    if mode:
        set_decode_mode(model, mode)
    return sum(part.nbytes for layer in probe(model) for part in layer)


def cache_bytes(cache: DynamicCache) -> int:
    """Return the bytes of all tokens in a cache, without room to grow."""
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


def weights_read(model: torch.nn.Module) -> int:
    """Return the bytes of weights that a step reads: all but an embedding table that is not also the head."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    return total - (0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes)
