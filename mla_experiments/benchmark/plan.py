"""What a model would cost, without running it: size, cache, batch, and the bound that hardware sets to decoding.

The bound is the roofline's (Williams et al. 2009): the slower of reading what a step must read once and doing its
arithmetic at the best rate. What runs is slower; on the machine at hand, its parts are timed too (`parts.py`), and what
is expected stands beside the bound.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedConfig

from ..errors import UserError, unknown
from ..modeling import DecoderConfig
from ..modeling.attention import find, mechanisms_of
from ..modeling.attention.base import Option
from ..modeling.attention.hybrid import options_for, spread
from ..modeling.conversion import read_config
from ..modeling.gguf_files import gguf_config, is_gguf
from .architectures import ARCHITECTURES, Architecture, architecture_from
from .costs import BYTES
from .hardware import Hardware
from .parts import measure_parts
from .stock import StockArchitecture

Model = TypeVar("Model", bound=Architecture | StockArchitecture)
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def architecture_of(model: str) -> Architecture | StockArchitecture:
    """Return a well-known model by name, or that of a `config.json` (its folder serves too).

    Raises:
        UserError: neither, with the nearest name, or a config of no decoder that can be counted.
    """
    if model.lower() in ARCHITECTURES:
        return ARCHITECTURES[model.lower()]
    path = Path(model)
    if is_gguf(path):
        return architecture_from(gguf_config(path))
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise unknown("model", model, [*ARCHITECTURES, "a folder with config.json"])
    config = read_config(folder)
    architecture = architecture_from(config)
    if missing := left_out(json.loads((folder / "config.json").read_text(encoding="utf-8")), config):
        said = f"config.json leaves out {', '.join(missing)}: what transformers takes in their place is counted"
        architecture = replace(architecture, notes=(*architecture.notes, said))
    return architecture


def left_out(described: dict, config: PreTrainedConfig) -> list[str]:
    """Return the sizes of the text decoder that a parsed config.json does not state, under any name it may have."""
    text = config.get_text_config(decoder=True)
    stated = part_of(described, config, text)
    names = {name: text.attribute_map.get(name, name) for name in SIZES if hasattr(text, name)}
    return [name for name, alias in names.items() if not {name, alias} & stated.keys()]


def part_of(described: dict, config: PreTrainedConfig, inner: PreTrainedConfig) -> dict:
    """Return the part of a parsed config.json that a config inside its config was made from; all where it is flat."""
    for name in config.sub_configs if inner is not config else ():
        part, given = getattr(config, name, None), described.get(name)
        if (
            isinstance(part, PreTrainedConfig)
            and part.get_text_config(decoder=True) is inner
            and isinstance(given, dict)
        ):
            return part_of(given, part, inner)
    return described


def changed(architecture: Model, attention: str | None, options: dict[str, Option]) -> Model:
    """Return the same model with another mechanism, or other options of its own.

    Raises:
        UserError: a model that is not like ours, or an option that the mechanism does not know, or cannot have.
    """
    if attention is None and not options:
        return architecture
    if isinstance(architecture, StockArchitecture):
        raise UserError(
            f"attention cannot be changed in {architecture.name}, which is counted as transformers builds it; only in "
            "Llama, DeepSeek and models of ours"
        )
    old = architecture.config
    now = find(attention or old.attention)
    chosen = spread(options, mechanisms_of(now))
    stated = options_for(now, {name: old.mechanisms.get(name, {}) | own for name, own in chosen.items()})
    values = old.to_dict() | {"attention": now, "attention_options": stated}
    return replace(architecture, config=DecoderConfig.from_dict(values))


def plan(
    architecture: Architecture | StockArchitecture, hardware: Hardware, contexts: list[int], batches: list[int]
) -> list[dict]:
    """Return a row per context and batch: cache, what fits, intensity, and the bound of a decoding step.

    On the CPU at hand there is also what is expected of a decoder of ours, from its measured parts.
    """
    ours = architecture.config if hardware.device == "cpu" and isinstance(architecture, Architecture) else None
    parts = {batch: measure_parts(ours, batch) for batch in batches} if ours else {}
    size, rows = hardware.bytes_per_number, []
    free = hardware.memory_gib * 2**30 - architecture.parameters * size
    for context in contexts:
        cache, step = architecture.cached_numbers(context) * size, architecture.decoding_flops(context)
        for batch in batches:
            weights = architecture.weights_read(batch)
            moved, flops = weights * size + batch * cache, batch * step
            reading, computing = moved / hardware.gb_per_second / 1e9, flops / hardware.tflop_per_second / 1e12
            row: dict[str, Any] = {
                "context": context,
                "batch": batch,
                "cache GiB": batch * cache / 2**30,
                "largest batch": max(0, int(free // cache)),
                "FLOPs/byte": flops / moved,
                "bound by": "memory" if reading >= computing else "arithmetic",
                "ms/step at best": 1e3 * max(reading, computing),
                "tokens/s at best": batch / max(reading, computing),
            }
            if ours:
                row["ms/step expected"] = 1e3 * parts[batch].step(weights, ours.num_hidden_layers, context)
            rows.append(row)
    return rows


def facts(architecture: Architecture | StockArchitecture, hardware: Hardware) -> list[str]:
    """Return what does not depend on context or batch, in sentences."""
    size, longest = hardware.bytes_per_number, longest_context(architecture, hardware)
    some = architecture.active_parameters < architecture.parameters
    shared = f", {counted(architecture.active_parameters)} of them for a token" if some else ""
    ridge = 1e3 * hardware.tflop_per_second / hardware.gb_per_second
    said = [
        *architecture.notes,
        architecture.described(),
        f"{counted(architecture.parameters)} parameters{shared}; {architecture.parameters * size / 2**30:,.2f} GiB of "
        f"weights at {size} bytes",
        f"cache: {architecture.cache_described(size)}",
    ]
    if size != BYTES:
        said.append(
            f"that is with {size} bytes a number, as models are served; studies count and eval measures {BYTES}, in "
            "single precision"
        )
    if flops := architecture.training_flops():
        said.append(f"training: {flops / 1e9:.3g} GFLOP a token at {architecture.longest:,} tokens")
    return [
        *said,
        f"the longest context of one sequence in {hardware.memory_gib:.0f} GiB: "
        + ("any" if longest is None else f"{longest:,} tokens")
        + (" (the weights alone do not fit)" if longest == 0 else ""),
        f"the roofline: {hardware.gb_per_second:,.4g} GB/s and {hardware.tflop_per_second:,.3g} TFLOP/s; memory "
        f"binds a step of fewer than {ridge:,.3g} FLOPs a byte",
    ]


def longest_context(architecture: Architecture | StockArchitecture, hardware: Hardware) -> int | None:
    """Return the longest context of one sequence that memory has room for; None where no length fills it."""
    size = hardware.bytes_per_number
    free = hardware.memory_gib * 2**30 - architecture.parameters * size
    fits, fails = 0, 2**50
    if architecture.cached_numbers(fails) * size <= free:
        return None
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if architecture.cached_numbers(middle) * size <= free:
            fits = middle
        else:
            fails = middle
    return fits


def counted(number: int) -> str:
    """Return a number of parameters, in billions or millions."""
    return f"{number / 1e9:,.3f} G" if number >= 1e9 else f"{number / 1e6:,.3f} M"
