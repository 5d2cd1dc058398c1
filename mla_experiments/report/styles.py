"""How lines and points look: colour, dashes and mark all differ, so that a figure can be read without colour.

One description serves matplotlib, plotly and the key above charts; colours are a pair, for light and dark paper.
"""

from dataclasses import dataclass

# Okabe and Ito's palette, darkened or lightened until each stands out from its paper by 3 to 1 (WCAG 2.2, 1.4.11)
COLORS = [
    ("#1b1b1b", "#f0f0f0"), ("#0072b2", "#56b4e9"), ("#d55e00", "#ff8c42"), ("#00876a", "#2fc79b"),
    ("#b8578f", "#e08fc0"), ("#707070", "#a8a8a8"), ("#1584a0", "#6fd6e3"), ("#9a6a00", "#f0c04a"),
    ("#004d40", "#b4e68c"), ("#882255", "#f07a9e"),
]  # fmt: skip
DASHES = [(), (3.7, 1.6), (6.4, 1.6, 1, 1.6), (1, 1.65), (5, 1, 1, 1, 1, 1)]  # in widths of the line
MARKS = [  # matplotlib's name, plotly's, and an SVG path around (0, 0)
    ("o", "circle", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z"), ("s", "square", "M-4,-4h8v8h-8Z"),
    ("^", "triangle-up", "M0,-5l5,8h-10Z"), ("D", "diamond", "M0,-5l5,5l-5,5l-5,-5Z"),
    ("v", "triangle-down", "M0,5l5,-8h-10Z"), ("P", "cross", "M-2,-5h4v3h3v4h-3v3h-4v-3h-3v-4h3Z"),
    ("X", "x", "M-5,-3l2,-2l3,3l3,-3l2,2l-3,3l3,3l-2,2l-3,-3l-3,3l-2,-2l3,-3Z"),
    ("<", "triangle-left", "M-5,0l8,-5v10Z"), (">", "triangle-right", "M5,0l-8,-5v10Z"),
    ("*", "star", "M0,-6l1.8,3.7l4,.6l-2.9,2.9l.7,4.1l-3.6,-2l-3.6,2l.7,-4.1l-2.9,-2.9l4,-.6Z"),
]  # fmt: skip
LINE_WIDTH = 2  # pixels, on the page


@dataclass(frozen=True)
class Style:
    """The look of one variant in every figure."""

    light: str
    dark: str
    dash: tuple[float, ...]
    mark: tuple[str, str, str]

    @property
    def matplotlib(self) -> dict:
        """Keyword arguments of `Axes.plot`."""
        return {"color": self.light, "linestyle": (0, self.dash) if self.dash else "-", "marker": self.mark[0]}

    @property
    def pixels(self) -> str:
        """Dashes in pixels, as plotly and SVG take them; empty for a solid line."""
        return ",".join(f"{LINE_WIDTH * part:g}" for part in self.dash)


def style(hue: int, mark: int) -> Style:
    """Return the look with a colour and its dashes, and a mark, all by number."""
    return Style(*COLORS[hue % len(COLORS)], DASHES[hue % len(DASHES)], MARKS[mark % len(MARKS)])
