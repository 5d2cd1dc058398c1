"""Prefill: how fast a prompt goes through the model and into the cache, beside transformers' models."""

import torch

from ..allocator import keep_freed_memory
from .measure import interleaved, rates
from .training import comparison, contestants


def compare_prefill(attention: list[str], num_tokens: int, rounds: int) -> list[dict]:
    """Return prompt tokens per second of both sides, taking turns; only the last position's logits are computed."""
    keep_freed_memory()
    models = contestants(attention, num_tokens)
    prompt = torch.randint(0, 10_000, (1, num_tokens))

    def prefill(model):
        model.eval()

        @torch.inference_mode()
        def run():
            model(prompt, use_cache=True, logits_to_keep=1)

        return run

    speeds = rates(interleaved({name: prefill(model) for name, model in models.items()}, rounds), num_tokens)
    return comparison(speeds, attention, f"{num_tokens} tokens")
