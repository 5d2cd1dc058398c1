"""Decoding: time per step from a filled cache, for every mechanism and mode, beside transformers' models.

Caches are filled with random numbers, so that a long context costs no prefill, and cut back after every step, so that
all steps are alike. Contestants take turns.
"""

import torch
from transformers import DynamicCache

from ..allocator import keep_freed_memory
from ..modeling import DecoderConfig, DecoderForCausalLM
from ..modeling.attention import set_decode_mode
from ..modeling.cache import growing
from ..modeling.export import stock_model
from .measure import interleaved
from .training import SHAPE


def compare_decode(
    attention: list[str], contexts: list[int], batch_sizes: list[int], rounds: int, modes: list[str]
) -> list[dict]:
    """Return the milliseconds of a step of every contestant at every context and batch size.

    Args:
        attention: mechanisms.
        contexts: tokens in the cache.
        batch_sizes: sequences decoded together.
        rounds: timed steps of each contestant.
        modes: of MLA, see `set_decode_mode`.
    """
    keep_freed_memory()
    models = decoders(attention, max(contexts) + 8)
    rows = []
    for batch in batch_sizes:
        for context in contexts:
            tasks, caches = {}, {}
            for name, model in models.items():
                for mode in modes if name == "mla, ours" else [""]:
                    if mode:
                        set_decode_mode(model, mode)
                    entry = f"{name} {mode}".strip()
                    caches[entry] = filled_cache(model, batch, context)
                    tasks[entry] = decode_step(model, caches[entry], batch, mode)
            seconds = interleaved(tasks, rounds)
            rows += [row(name, batch, context, times, caches[name]) for name, times in seconds.items()]
    return rows


def decoders(attention: list[str], longest: int) -> dict[str, torch.nn.Module]:
    """Return our model of the reference shape and the stock one with the same weights, for every mechanism."""
    models = {}
    for name in attention:
        ours = DecoderForCausalLM(DecoderConfig(**SHAPE, attention=name, max_position_embeddings=longest)).eval()
        models[f"{name}, ours"], models[f"{name}, transformers"] = ours, stock_model(ours).eval()
    return models


@torch.inference_mode()
def filled_cache(model: torch.nn.Module, batch: int, context: int) -> DynamicCache:
    """Return a cache of random numbers in the shapes that the model itself caches."""
    probe = model(torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
    cache = DynamicCache(config=model.config)
    if isinstance(model, DecoderForCausalLM):
        cache = growing(cache)
    for index, layer in enumerate(probe.layers):
        shapes = [(batch, part.shape[1], context, part.shape[3]) for part in (layer.keys, layer.values)]
        cache.update(*(torch.randn(shape) for shape in shapes), index)
    return cache


def decode_step(model: torch.nn.Module, cache: DynamicCache, batch: int, mode: str = "", new: int = 1):
    """Return a function that decodes `new` tokens a sequence and takes them back."""
    tokens = torch.zeros(batch, new, dtype=torch.long)

    @torch.inference_mode()
    def step():
        if mode:
            set_decode_mode(model, mode)
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-new)

    return step


def row(name: str, batch: int, context: int, times: list[float], cache: DynamicCache) -> dict:
    """Return one line of the table: times in milliseconds, the cache in MiB."""
    median = sorted(times)[len(times) // 2]
    held = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    return {
        "model": name,
        "batch": batch,
        "context": context,
        "ms/step": 1e3 * median,
        "from": 1e3 * min(times),
        "to": 1e3 * max(times),
        "tokens/s": batch / median,
        "cache MiB": held / 2**20,
        "cache GB/s": held / median / 1e9,
    }
