"""A training step of every mechanism beside transformers' models of the same shape and weights.

Two questions. With the same allocator settings for both sides, taking turns in one process: whose code is faster? And
as a user starts it, each side in a process of its own with its own defaults: what does one get?
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..allocator import keep_freed_memory
from ..modeling import DecoderConfig, DecoderForCausalLM, set_weight_dtype
from ..modeling.attention import MISSION
from ..modeling.export import has_stock, stock_model
from .measure import flag, in_fresh_process, interleaved, rates

MECHANISMS = list(MISSION)
SHAPE: dict[str, Any] = {"vocab_size": 10_000, "hidden_size": 512, "num_attention_heads": 16, "num_hidden_layers": 8}
FIGURE = None


@dataclass
class Arguments:
    """Tokens per second of a training step, ours and transformers'."""

    attention: list[str] = flag(MECHANISMS, "mechanisms to measure")
    sequence_length: int = flag(512, "tokens of a sequence")
    batch_size: int = flag(4, "sequences in a step")
    rounds: int = flag(9, "timed turns of each contestant, after two to warm up")


def measure(given: Arguments) -> list[dict]:
    """Return a row per mechanism with equal settings, and one as each side is started."""
    shape = (given.attention, given.sequence_length, given.batch_size)
    return compare_steps(*shape, given.rounds) + compare_as_started(*shape, max(1, given.rounds // 4))


def training_step(model: PreTrainedModel, sequence_length: int, batch_size: int) -> Callable[[], None]:
    """Return a function that trains one step on random tokens, see `step_on_batches`."""
    tokens = torch.randint(0, model.config.vocab_size, (batch_size, sequence_length), device=model.device)
    step = step_on_batches(model)
    return lambda: step({"input_ids": tokens, "labels": tokens})


def step_on_batches(model: PreTrainedModel) -> Callable[[dict[str, torch.Tensor]], None]:
    """Return a function that trains one step on a batch with AdamW; on a GPU in bf16, as a run there does."""
    kind = model.device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def config_of(attention: str, sequence_length: int) -> DecoderConfig:
    """Return the config of a model that is measured."""
    return DecoderConfig(**SHAPE, attention=attention, max_position_embeddings=sequence_length)


def contestants(
    attention: list[str],
    sequence_length: int,
    device: str = "cpu",
    weight_dtypes: Sequence[str] = ("f32",),
    with_stock: bool = True,
) -> dict[str, PreTrainedModel]:
    """Return our model of every mechanism, and the stock one with the same weights where there is one.

    Args:
        attention: names of mechanisms.
        sequence_length: the longest.
        device: where they are.
        weight_dtypes: in each of which ours keeps its weights.
        with_stock: make the stock ones too.
    """
    models: dict[str, PreTrainedModel] = {}
    for name in attention:
        ours = DecoderForCausalLM(config_of(name, sequence_length)).to(device)
        for dtype in weight_dtypes:
            if dtype == "f32":
                models[f"{name}, ours"] = ours
                continue
            models[f"{name}, ours, weights {dtype}"] = rounded = copy.deepcopy(ours)
            set_weight_dtype(rounded, dtype)
        if with_stock and has_stock(ours.config):
            models[f"{name}, transformers"] = stock_model(ours)
    return models


def compare_steps(attention: list[str], sequence_length: int, batch_size: int, rounds: int) -> list[dict]:
    """Return tokens per second of both sides, with the same allocator settings, taking turns."""
    keep_freed_memory()
    models = contestants(attention, sequence_length)
    steps = {name: training_step(model, sequence_length, batch_size) for name, model in models.items()}
    speeds = rates(interleaved(steps, rounds), batch_size * sequence_length)
    return comparison(speeds, attention, "same settings")


def compare_as_started(attention: list[str], sequence_length: int, batch_size: int, rounds: int) -> list[dict]:
    """Return tokens per second of both sides, each in its own process with its own defaults, taking turns."""
    speeds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in attention:
            sides = ("ours", "transformers") if has_stock(config_of(name, sequence_length)) else ("ours",)
            for side in sides:
                speed = in_fresh_process(_speed_alone, name, side, sequence_length, batch_size)
                speeds.setdefault(f"{name}, {side}", []).append(batch_size * sequence_length / speed)
    return comparison(rates(speeds, batch_size * sequence_length), attention, "as started")


def _speed_alone(attention: str, side: str, sequence_length: int, batch_size: int) -> float:
    if side == "ours":
        keep_freed_memory()
    model = contestants([attention], sequence_length)[f"{attention}, {side}"]
    step = training_step(model, sequence_length, batch_size)
    return rates(interleaved({"step": step}, rounds=5), batch_size * sequence_length)["step"]["median"]


def comparison(speeds: dict, attention: list[str], setting: str) -> list[dict]:
    """Return a row per mechanism: medians and ranges of both sides, and their ratio where there are two."""
    rows = []
    for name in attention:
        ours, theirs = speeds[f"{name}, ours"], speeds.get(f"{name}, transformers", {})
        rows.append(
            {
                "attention": name,
                "setting": setting,
                "ours, tokens/s": ours["median"],
                "from": ours["low"],
                "to": ours["high"],
                "transformers, tokens/s": theirs.get("median"),
                "from ": theirs.get("low"),
                "to ": theirs.get("high"),
                "ratio": ours["median"] / theirs["median"] if theirs else None,
            }
        )
    return rows
