"""Draw what each mechanism keeps of a token, from the contract alone: `python docs/drawings.py` writes docs/cache.png.

A mechanism that is registered gets a bar, here and on its card in the atlas; its parts are those that it names itself
(`cache_parts`).
"""

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib import rc_context
from matplotlib.axes import Axes

from mla_experiments.benchmark.costs import layers_of
from mla_experiments.modeling import DecoderConfig
from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.report.figures import new_figure, save

GREYS, HATCHES = ("0.25", "0.6", "0.8", "0.92"), ("", "//", "..", "xx")
SHAPE = {"vocab_size": 64, "hidden_size": 512, "num_attention_heads": 16, "num_hidden_layers": 1}


def parts_of(name: str) -> dict[str, int]:
    """Return the numbers that a layer of the reference shape keeps of a token, part by part."""
    (layer,) = layers_of(DecoderConfig(**SHAPE, attention=name))
    return layer.cache_parts()


def draw_bar(axes: Axes, row: int, parts: dict[str, int], fontsize: float) -> None:
    """Draw the parts side by side, each as long as it is large, and name them behind."""
    left = 0
    for place, count in enumerate(parts.values()):
        look = {"color": GREYS[place % 4], "hatch": HATCHES[place % 4], "edgecolor": "black", "linewidth": 0.6}
        axes.barh(row, count, left=left, **look)
        left += count
    named = " + ".join(f"{part} {count:,}" for part, count in parts.items())
    axes.text(left + 8, row, f"{left:,}:  {named}", va="center", fontsize=fontsize)


def draw(path: Path) -> Path:
    """Draw a bar for each mechanism, in the order of the registry, and write it."""
    kept = {name: parts_of(name) for name in ATTENTION}
    figure = new_figure(7.2, 0.34 * len(kept) + 1.2)
    axes = figure.add_subplot()
    for row, parts in enumerate(kept.values()):
        draw_bar(axes, row, parts, fontsize=7.5)
    axes.set_yticks(range(len(kept)), [name.replace("_", "-").upper() for name in kept])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.7 * max(sum(parts.values()) for parts in kept.values()))
    axes.set(title="What a layer keeps of a token", xlabel="numbers in the cache (512 wide, 16 heads)")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def card(name: str, widest: int) -> str:
    """Return one bar as SVG in the colour of the text around it, drawn to the scale of the widest."""
    figure = new_figure(6.4, 0.5)
    axes = figure.add_subplot()
    draw_bar(axes, 0, parts_of(name), fontsize=11)
    axes.set_xlim(0, 1.7 * widest)
    axes.set_axis_off()
    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    drawn = written.getvalue()
    return drawn[drawn.index("<svg") :].replace("#000000", "currentColor")


if __name__ == "__main__":
    print(draw(Path(__file__).with_name("cache.png")))
