"""What a conversion costs: rows of a table, the figure of loss against cache, and the card of the converted model."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..conversion.job import Measured
from ..evaluation.measures import BITS, ratio
from ..markdown import escaped, table
from ..study.statistics import CONFIDENCE, LEAST_DOCUMENTS, contributions, spread_of
from ..texts import read_text, write_text
from .figures import STYLES, new_figure, save
from .model_card import write_model_card

TAIL = (1 - CONFIDENCE) / 2
FIGURE = "loss-against-cache.png"


def row_of(one: Measured, original: Measured) -> dict[str, str]:
    """Return a row of the table: a step or a size beside the original, with intervals over documents.

    Args:
        one: what was measured.
        original: the same of the original, on the same documents.
    """
    now, before = one.distance, original.distance
    more = with_interval(more_bits(one, original), now.bytes)
    apart = with_interval(now.divergence, now.tokens)
    return {
        "step": one.step,
        "numbers a token and layer": f"{one.numbers:,}" + (f" ({one.rotary} rotary)" if one.rotary else ""),
        "perplexity": f"{now.perplexity:.2f}",
        "of the original's": f"{now.perplexity / before.perplexity:.3f}",
        "bits/byte": f"{now.bits_per_byte:.4f}",
        "more bits/byte": "" if one is original else more,
        "KL, nats a token": "" if one is original else apart,
        **{f"{name}, % right": f"{100 * share:.1f}" for name, share in one.recall.items()},
    }


def more_bits(one: Measured, original: Measured) -> np.ndarray:
    """Return by how many bits each document became less likely, `[documents]`."""
    return BITS.scale * (one.distance.nats - original.distance.nats)


def with_interval(sums: np.ndarray, sizes: np.ndarray) -> str:
    """Return Σ sums / Σ sizes, and ± of its 95 % interval, if documents suffice."""
    reach = half_width(sums, sizes)
    return f"{ratio(sums, sizes):.4f}" + ("" if reach is None else f" ± {reach:.4f}")


def half_width(sums: np.ndarray, sizes: np.ndarray) -> float | None:
    """Return that of the 95 % interval of Σ sums / Σ sizes over documents; None for few documents."""
    return None if len(sums) < LEAST_DOCUMENTS else spread_of(contributions(sums[None], sizes)[0]).reach(TAIL)


def cost_table(measured: Iterable[Measured], original: Measured) -> str:
    """Return what was measured as a Markdown table."""
    return table([row_of(one, original) for one in measured])


def draw_loss_against_cache(curve: list[Measured], steps: list[Measured], path: Path) -> Path:
    """Draw by how much held-out text becomes less likely as the cache shrinks; what was written is a point of its own.

    Args:
        curve: sizes, by closed forms alone.
        steps: of the model that was written, the original first.
        path: of the PNG.
    """
    original, written = steps[0], steps[-1]
    points = sorted([original, *curve], key=lambda one: one.numbers)
    figure = new_figure()
    axes = figure.add_subplot()
    axes.errorbar(
        [one.numbers for one in points],
        [one.distance.bits_per_byte for one in points],
        yerr=[half_width(more_bits(one, original), one.distance.bytes) or 0.0 for one in points],
        label="closed forms",
        markersize=4,
        capsize=2,
        **STYLES[1],
    )
    mark = {**STYLES[2], "linestyle": ""}
    axes.plot([written.numbers], [written.distance.bits_per_byte], label=f"written: {written.step}", **mark)
    axes.axhline(original.distance.bits_per_byte, color="0.6", linewidth=0.8)
    axes.set(xlabel="numbers cached a token and layer", ylabel="bits per byte of held-out text")
    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, path)


HELD = (
    "The last channel of each latent is a constant of some 10⁵ that makes the norm without effect, and zeros in "
    "`kv_b_proj` keep it unread. A trainer must hold those zeros, as `convert --heal_tokens` does: one step of an "
    "optimizer on them is the end of the model."
)


def write_conversion(folder: Path, steps: list[Measured], curve: list[Measured], record: dict) -> None:
    """Write table, figure and model card into the folder of a converted model."""
    text = about(steps, curve, record)
    if curve:
        draw_loss_against_cache(curve, steps, folder / FIGURE)
        text += f"\n\n![Loss against cache]({FIGURE})"
    card = write_model_card(folder)
    write_text(card, f"{read_text(card)}\n{text}")


def about(steps: list[Measured], curve: list[Measured], record: dict) -> str:
    """Return the part of the card on the conversion."""
    calibration, held_out = record["calibration"], record["held_out"]
    parts = [
        "## Conversion",
        f"Converted from {escaped(record['original']['name'])} (weights {record['original']['sha256'][:12]}). "
        f"Calibrated on {calibration['tokens']:,} tokens of {escaped(calibration['corpus'])} "
        f"({calibration['sha256'][:12]}), measured on {held_out['documents']} documents of "
        f"{escaped(held_out['corpus'])} ({held_out['sha256'][:12]}), of which no passage "
        "is in the calibration text. Intervals are of 95 %, over documents.",
        cost_table(steps, steps[0]),
    ]
    if record["request"]["latent_norm"] == "constant":
        parts.append(HELD)
    if curve:
        parts += ["Other sizes, by closed forms alone:", cost_table(curve, steps[0])]
    return "\n\n".join(parts)
