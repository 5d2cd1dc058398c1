"""Decoding: time per step from a filled cache, for every mechanism and mode, beside transformers and llama.cpp.

Caches are filled with random numbers, so that a long context costs no prefill, and cut back after every step, so that
all steps are alike. Contestants take turns.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from ..allocator import keep_freed_memory
from ..errors import unknown
from ..kernels import PackedLinear, latent
from ..modeling import DecoderForCausalLM, set_cache_dtype
from ..modeling.attention import Attention, set_decode_mode
from ..modeling.attention.checks import require
from ..modeling.cache import StoredLayer, growing
from ..modeling.cache_name import by_name, cache_of
from . import llama_cpp
from .measure import ceilings, flag, flops_of, interleaved, roofline, spread
from .training import MECHANISMS, contestants

SOME_TOKENS = 1024
PEERS = ("transformers", "llama.cpp", "none")
FIGURE = {"x": "context", "y": "ms", "line": "model", "panel": "batch"}


@dataclass
class Arguments:
    """Milliseconds of a decoding step against context and batch size, ours and transformers' (or llama.cpp's)."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    contexts: list[int] = flag([128, 512, 2048, 8192, 32768, 65536], "tokens in the cache")
    batch_sizes: list[int] = flag([1, 8], "sequences decoded together")
    modes: list[str] = flag(["auto"], "how those decode that know several ways: auto, absorb, expand, full")
    peers: list[str] = flag(
        ["transformers"],
        "beside ours: transformers, llama.cpp (one sequence; llama-cpp-python), or none",
    )
    budget_gib: float = flag(16.0, "leave out a context whose caches of all contestants together are larger")
    cache_dtypes: list[str] = flag([], "in which ours keep their caches: f32, bf16, f16, int8; by default their own")
    weight_dtypes: list[str] = flag(["f32"], "in which ours keep their weights: f32, bf16, f16, int8")
    backend: str | None = flag(None, "of MLA's decoding (`mla-experiments kernels`)")
    rounds: int = flag(9, "timed turns of each contestant, after two to warm up")


def measure(given: Arguments) -> list[dict]:
    """Return a row per contestant, context and batch size.

    `% of matmul` and `% of bandwidth` are shares of what the machine reaches on a large matrix product and in reading
    a large buffer: of the operations that the contestant itself does, and of one reading of its weights and cache.
    """
    keep_freed_memory()
    latent.force_backend(given.backend)
    check_peers(given.peers)
    ceiling = ceilings()
    with_stock = "transformers" in given.peers
    models = contestants(given.attention, max(given.contexts) + 8, "cpu", given.weight_dtypes, with_stock)
    ours = {name: model for name, model in models.items() if isinstance(model, DecoderForCausalLM)}
    for mode in given.modes:
        require(
            mode == "auto" or any(mode in modes_of(model, [mode]) for model in models.values()),
            f"decode_mode={mode} is unknown to {', '.join(models)}; choose auto, absorb, expand or full",
        )
    rows: list[dict] = []
    for batch in given.batch_sizes:
        for context in given.contexts:
            steps = prepared(models, given.modes, batch, context, given.budget_gib, given.cache_dtypes)
            with by_llama_cpp(ours, given, context) if steps and batch == 1 else nullcontext({}) as theirs:
                rows += timed_steps(models, steps | theirs, batch, context, given.rounds, ceiling)
    return rows


def check_peers(peers: list[str]) -> None:
    """Refuse peers that there are not, or that are not installed.

    Raises:
        UserError: see there.
    """
    if unknown_ones := [peer for peer in peers if peer not in PEERS]:
        raise unknown("peers", unknown_ones[0], PEERS)
    require(len(peers) == 1 or "none" not in peers, f"peers={' '.join(peers)}: none stands alone; leave it out")
    if "llama.cpp" in peers:
        llama_cpp.check_installed()


def by_llama_cpp(ours: dict[str, DecoderForCausalLM], given: Arguments, context: int) -> AbstractContextManager[dict]:
    """Give llama.cpp's steps of our models, if it is a peer; those of one mechanism differ in their weights' type."""
    if "llama.cpp" not in given.peers:
        return nullcontext({})
    models = {name.split(",")[0]: model for name, model in ours.items() if name.endswith(", ours")}
    return llama_cpp.steps(models, context, given.weight_dtypes, given.cache_dtypes or ["f32"])


def timed_steps(
    models: dict[str, PreTrainedModel],
    steps: dict[str, tuple[Callable, int]],
    batch: int,
    context: int,
    rounds: int,
    ceiling: dict[str, float],
) -> Iterator[dict]:
    """Yield a row per contestant, taking turns; what another program computes has no operations that torch counts.

    Args:
        models: by name, ours and transformers'.
        steps: a step and the bytes of its cache, by the name of its model, and how it is run behind a colon.
        batch: sequences.
        context: tokens in each one's cache.
        rounds: timed turns of each.
        ceiling: of `measure.ceilings`.
    """
    of_torch = {name: models[model] for name in steps if (model := name.split(":")[0]) in models}
    flops = {name: flops_of(steps[name][0]) for name in of_torch}
    seconds = interleaved({name: step for name, (step, _) in steps.items()}, rounds)
    for name, times in seconds.items():
        row: dict[str, Any] = {"model": name, "batch": batch, "context": context, **spread(times)}
        row |= {"tokens/s": 1e3 * batch / row["ms"], "cache MiB": steps[name][1] / 2**20}
        if name not in of_torch:
            yield row | dict.fromkeys(("% of matmul", "% of bandwidth"))
            continue
        read = weights_read(of_torch[name]) + steps[name][1]
        yield row | roofline(row["ms"] / 1e3, flops[name], read, ceiling)


def prepared(
    models: dict[str, PreTrainedModel],
    modes: list[str],
    batch: int,
    context: int,
    budget_gib: float,
    cache_dtypes: list[str],
) -> dict[str, tuple[Callable, int]]:
    """Return every contestant's step and the bytes of its cache; none if the caches together break the budget."""
    entries = [
        (name, mode, dtype)
        for name in models
        for mode in modes_of(models[name], modes)
        for dtype in dtypes_of(models[name], cache_dtypes)
    ]
    needed = sum(batch * context * bytes_per_token(models[name], mode, dtype) for name, mode, dtype in entries)
    if needed > budget_gib * 2**30:
        print(f"batch {batch}, context {context} left out: {needed / 2**30:.1f} GiB of caches; see --budget-gib")
        return {}
    steps = {}
    for name, mode, dtype in entries:
        step, cache = decode_step(models[name], batch, context, mode, dtype)
        how = ", ".join(filter(None, (mode, dtype and f"cache {dtype}")))
        steps[f"{name}: {how}" if how else name] = (step, cache_bytes(cache))
    return steps


def dtypes_of(model: PreTrainedModel, asked: list[str]) -> list[str | None]:
    """Return in what a model's caches are kept; transformers' own models have no choice."""
    return [*asked] if asked and isinstance(model, DecoderForCausalLM) else [None]


def modes_of(model: PreTrainedModel, asked: list[str]) -> list[str | None]:
    """Return the modes among those asked for that a model's layers know; where there is no choice it is left alone."""
    layers = (module for module in model.modules() if isinstance(module, Attention))
    known = {mode for layer in layers for mode in layer.decode_modes}
    return [mode for mode in asked if mode in known] if len(known) > 1 else [None]


def choose(model: PreTrainedModel, mode: str | None, cache_dtype: str | None) -> None:
    """Have one of our models attend in a mode, and keep its caches in a dtype."""
    if mode:
        set_decode_mode(model, mode)
    if isinstance(model, DecoderForCausalLM):
        set_cache_dtype(model, cache_dtype)


def decode_step(
    model: PreTrainedModel, batch: int, context: int, mode: str | None = None, cache_dtype: str | None = None
) -> tuple[Callable, DynamicCache]:
    """Return a function that decodes one token a sequence from a filled cache and takes it back, and that cache."""
    choose(model, mode, cache_dtype)
    cache = filled_cache(model, batch, context)
    plain = step_from(model, cache, batch)

    def step():
        choose(model, mode, cache_dtype)
        plain()

    return step, cache


def step_from(model: PreTrainedModel, cache: DynamicCache, batch: int, num_new: int = 1) -> Callable[[], None]:
    """Return a function that decodes so many tokens a sequence from a cache at once, and takes them back."""
    tokens = torch.zeros(batch, num_new, dtype=torch.long, device=model.device)
    model.eval()

    @torch.inference_mode()
    def step():
        model(tokens, **by_name(cache), use_cache=True, logits_to_keep=num_new)
        cache.crop(-num_new)

    return step


@torch.inference_mode()
def filled_cache(model: PreTrainedModel, batch: int, context: int) -> DynamicCache:
    """Return a cache of random numbers in the shapes that the model itself caches."""
    cache = DynamicCache(config=model.config)
    if isinstance(model, DecoderForCausalLM):
        growing(cache, model.model.cache_dtype, model.config.num_hidden_layers)
        if model.model.cache_dtype:
            return filled_with(cache, probe_cache(model), batch, context, model.dtype)
    for index, parts in enumerate(probe(model)):
        keys, values = (part[:, :, :1].expand(batch, -1, context, -1) for part in parts)
        for kept in cache.update(keys, values, index):
            kept.normal_()
    return cache


@torch.inference_mode()
def probe(model: PreTrainedModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return what every layer caches of one token."""
    return tensors_of(probe_cache(model))


def tensors_of(cache: Cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the keys and values of every layer, as they lie."""
    pairs = ((getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers)
    return [(keys, values) for keys, values in pairs if keys is not None and values is not None]


@torch.inference_mode()
def probe_cache(model: PreTrainedModel) -> DynamicCache:
    """Return a cache of one token."""
    return cache_of(model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True))


def filled_with(cache: DynamicCache, one: DynamicCache, batch: int, context: int, dtype: torch.dtype) -> DynamicCache:
    """Fill a cache in fewer bits with random numbers, some tokens at a time; `one` is the same of one token."""
    for index, shown in enumerate(one.layers):
        assert isinstance(shown, StoredLayer)
        shapes = [part.shape for part in shown.kept()]
        for begin in range(0, context, SOME_TOKENS):
            count = min(SOME_TOKENS, context - begin)
            sizes = [(batch, shape[1], count, shape[3]) for shape in shapes]
            keys, values = (torch.randn(size, device=shown.keys.device, dtype=dtype) for size in sizes)
            cache.update(keys, values, index, parts=shown.parts[0], as_kept=True)
    return cache


def bytes_per_token(model: PreTrainedModel, mode: str | None = None, cache_dtype: str | None = None) -> int:
    """Return what one token takes in the cache."""
    choose(model, mode, cache_dtype)
    return sum(part.nbytes for layer in probe(model) for part in layer)


def cache_bytes(cache: Cache) -> int:
    """Return the bytes of all tokens in a cache, without room to grow."""
    return sum(part.nbytes for pair in tensors_of(cache) for part in pair)


def weights_read(model: PreTrainedModel) -> int:
    """Return the bytes of weights that a step reads: all but an embedding table that is not also the head."""
    packed = [module.kept for module in model.modules() if isinstance(module, PackedLinear)]
    total = sum(weight.nbytes for weight in (*model.parameters(), *packed))
    tables = model.get_input_embeddings().parameters()
    is_head = model.config.tie_word_embeddings and not isinstance(model.get_output_embeddings(), PackedLinear)
    return total - (0 if is_head else sum(table.nbytes for table in tables))
