"""Draw what each mechanism keeps of a token, from the contract alone: `python docs/drawings.py` writes docs/cache.png.

A mechanism that is registered gets a bar; its parts are those that it names itself (`cache_parts`).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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


def draw(path: Path) -> Path:
    """Draw a bar for each mechanism, in the order of the registry, and write it."""
    kept = {name: parts_of(name) for name in ATTENTION}
    figure = new_figure(7.2, 0.34 * len(kept) + 1.2)
    axes = figure.add_subplot()
    for row, (_name, parts) in enumerate(kept.items()):
        left = 0
        for place, (_part, count) in enumerate(parts.items()):
            look = {"color": GREYS[place % 4], "hatch": HATCHES[place % 4], "edgecolor": "black", "linewidth": 0.6}
            axes.barh(row, count, left=left, **look)
            left += count
        named = " + ".join(f"{part} {count:,}" for part, count in parts.items())
        axes.text(left + 8, row, f"{left:,}:  {named}", va="center", fontsize=7.5)
    axes.set_yticks(range(len(kept)), [name.replace("_", "-").upper() for name in kept])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.7 * max(sum(parts.values()) for parts in kept.values()))
    axes.set(title="What a layer keeps of a token", xlabel="numbers in the cache (512 wide, 16 heads)")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


if __name__ == "__main__":
    print(draw(Path(__file__).with_name("cache.png")))
