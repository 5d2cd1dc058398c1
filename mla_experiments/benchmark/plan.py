"""What a model would cost, without running it: size, cache, batch, and the bound that hardware sets to decoding.

The bound is the roofline's (Williams et al. 2009): the slower of reading what a step must read once and doing its
arithmetic at the best rate. What runs is slower; on the machine at hand, its parts are timed too (`parts.py`), and what
is expected stands beside the bound.
"""

from dataclasses import replace
from pathlib import Path

from ..errors import unknown
from ..modeling import DecoderConfig
from ..modeling.attention import MLA
from ..modeling.conversion import read_config
from .architectures import ARCHITECTURES, Architecture, architecture_from
from .core import flops as absorbed_flops
from .costs import cache_elements_per_token, skeleton, training_flops_per_token
from .hardware import Hardware
from .parts import measure_parts


def architecture_of(model: str) -> Architecture:
    """Return a well-known model by name, or that of a `config.json` (its folder serves too).

    Raises:
        UserError: neither, with the nearest name, or a config of another architecture.
    """
    if model.lower() in ARCHITECTURES:
        return ARCHITECTURES[model.lower()]
    path = Path(model)
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise unknown("model", model, [*ARCHITECTURES, "a folder with config.json"])
    return architecture_from(read_config(folder))


def changed(architecture: Architecture, attention: str | None, options: dict[str, int]) -> Architecture:
    """Return the same model with another mechanism, or other options of its own.

    Raises:
        UserError: an option that the mechanism does not know, or cannot have.
    """
    if attention is None and not options:
        return architecture
    old = architecture.config
    same = attention in (None, old.attention)
    values = old.to_dict() | {"attention": attention or old.attention}
    values["attention_options"] = (old.attention_options | options) if same else options
    return replace(architecture, config=DecoderConfig.from_dict(values))


def decoding_flops(architecture: Architecture, context: int) -> int:
    """Return the FLOPs of decoding one token after `context` tokens; MLA absorbs."""
    config, attention = architecture.config, skeleton(architecture.config).model.layers[0].self_attn
    if isinstance(attention, MLA):
        layer = attention.flops(1, 0) + absorbed_flops(attention, 1, context)
    else:
        layer = attention.flops(1, context)
    in_attention = sum(p.numel() for p in attention.parameters()) * config.num_hidden_layers
    norms = config.hidden_size * (2 * config.num_hidden_layers + 1)  # those outside attention
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return config.num_hidden_layers * layer + 2 * (architecture.active_parameters - in_attention - embedding - norms)


def plan(architecture: Architecture, hardware: Hardware, contexts: list[int], batches: list[int]) -> list[dict]:
    """Return a row per context and batch: cache, what fits, intensity, and the bound of a decoding step.

    On the CPU at hand there is also what is expected, from its measured parts.
    """
    parts = {batch: measure_parts(architecture.config, batch) for batch in batches if hardware.device == "cpu"}
    size, rows = hardware.bytes_per_number, []
    per_token = cache_elements_per_token(architecture.config) * size
    free = hardware.memory_gib * 2**30 - architecture.parameters * size
    for context in contexts:
        for batch in batches:
            weights = weights_read(architecture, batch)
            moved, flops = weights * size + batch * context * per_token, batch * decoding_flops(architecture, context)
            reading, computing = moved / hardware.gb_per_second / 1e9, flops / hardware.tflop_per_second / 1e12
            row = {
                "context": context,
                "batch": batch,
                "cache GiB": batch * context * per_token / 2**30,
                "largest batch": max(0, int(free // (context * per_token))),
                "FLOPs/byte": flops / moved,
                "bound by": "memory" if reading >= computing else "arithmetic",
                "ms/step at best": 1e3 * max(reading, computing),
                "tokens/s at best": batch / max(reading, computing),
            }
            if batch in parts:
                layers = architecture.config.num_hidden_layers
                row["ms/step expected"] = 1e3 * parts[batch].step(weights, layers, context)
            rows.append(row)
    return rows


def weights_read(architecture: Architecture, batch: int) -> int:
    """Return how many weights a step reads; with experts those of each token, up to all, and of a table one row."""
    config = architecture.config
    table = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    if not architecture.experts:
        return architecture.parameters - table
    return min(architecture.parameters, batch * architecture.active_parameters) - table


def facts(architecture: Architecture, hardware: Hardware) -> list[str]:
    """Return what does not depend on context or batch, in sentences."""
    config, size = architecture.config, hardware.bytes_per_number
    elements = cache_elements_per_token(config)
    shared = f", {counted(architecture.active_parameters)} of them for a token" if architecture.experts else ""
    ridge = 1e3 * hardware.tflop_per_second / hardware.gb_per_second
    longest = int((hardware.memory_gib * 2**30 - architecture.parameters * size) // (elements * size))
    gib, gflop = architecture.parameters * size / 2**30, training_flops(architecture) / 1e9
    return [
        f"{config.attention}: {', '.join(f'{k} {v}' for k, v in config.attention_options.items() if v is not None)}",
        f"{counted(architecture.parameters)} parameters{shared}; {gib:,.2f} GiB of weights at {size} bytes",
        f"cache: {elements * size:,} bytes a token, {elements // config.num_hidden_layers:,} numbers a token and layer",
        f"training: {gflop:.3g} GFLOP a token at {config.max_position_embeddings:,} tokens",
        f"the longest context of one sequence in {hardware.memory_gib:.0f} GiB: {max(0, longest):,} tokens"
        + ("" if longest > 0 else " (the weights alone do not fit)"),
        f"the roofline: {hardware.gb_per_second:,.4g} GB/s and {hardware.tflop_per_second:,.3g} TFLOP/s; memory "
        f"binds a step of fewer than {ridge:,.3g} FLOPs a byte",
    ]


def counted(number: int) -> str:
    """Return a number of parameters, in billions or millions."""
    return f"{number / 1e9:,.3f} G" if number >= 1e9 else f"{number / 1e6:,.3f} M"


def training_flops(architecture: Architecture) -> float:
    """Return training FLOPs per token; experts count as far as a token uses them."""
    config = architecture.config
    flops = training_flops_per_token(config, config.max_position_embeddings)
    dense = replace(architecture, experts=None)
    return flops + 6 * (architecture.active_parameters - dense.parameters)
