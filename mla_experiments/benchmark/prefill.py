"""Prefill: how fast a prompt goes through the model and into the cache, beside transformers' models."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..allocator import keep_freed_memory
from .measure import ceilings, flag, flops_of, interleaved, roofline, spread
from .training import MECHANISMS, contestants

FIGURE = {"x": "prompt", "y": "tokens/s", "line": "model", "panel": None}


@dataclass
class Arguments:
    """Prompt tokens per second, ours and transformers'."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    prompts: list[int] = flag([512, 2048, 8192], "tokens of the prompt")
    weight_dtypes: list[str] = flag(["f32"], "in which ours keep their weights: f32, bf16, f16, int8")
    rounds: int = flag(5, "timed turns of each contestant, after one to warm up")


def measure(given: Arguments) -> list[dict]:
    """Return a row per prompt and model, taking turns; only the last position's logits are computed."""
    keep_freed_memory()
    ceiling = ceilings()
    models = contestants(given.attention, max(given.prompts), weight_dtypes=given.weight_dtypes)
    return list(timed_prompts(models, given.prompts, given.rounds, ceiling))


def timed_prompts(
    models: dict[str, PreTrainedModel], prompts: Iterable[int], rounds: int, ceiling: dict[str, float]
) -> Iterator[dict]:
    """Yield a row per prompt and model, the models of a prompt taking turns."""
    for length in prompts:
        tasks = {name: prefill(model, length) for name, model in models.items()}
        flops = {name: flops_of(task) for name, task in tasks.items()}
        for name, seconds in interleaved(tasks, rounds, warmup=1).items():
            row: dict[str, Any] = {"model": name, "prompt": length, **spread(seconds)}
            row["tokens/s"] = 1e3 * length / row["ms"]
            yield row | {"% of matmul": roofline(row["ms"] / 1e3, flops[name], 0, ceiling)["% of matmul"]}


def prefill(model: PreTrainedModel, length: int) -> Callable[[], None]:
    """Return a function that runs a prompt of random tokens through the model."""
    prompt = torch.randint(0, model.config.vocab_size, (1, length), device=model.device)
    model.eval()

    @torch.inference_mode()
    def run() -> None:
        model(prompt, use_cache=True, logits_to_keep=1)

    return run
