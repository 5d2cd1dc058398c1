"""The interactive page of a report: one file that opens from disk, with plotly inside, and all text escaped.

Its content security policy lets it load nothing, and run no script but its own three, which are named by their hashes:
should text ever get past the escaping, it still does nothing.
"""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from ..texts import write_text
from .charts import Chart, to_plotly
from .styles import LINE_WIDTH, Style
from .templates import fill
from .text import HOW_TOLD_APART, Text


def write_page(path: Path, text: Text, charts: dict[str, list[Chart]], variants: dict[str, Style]) -> list[Path]:
    """Write the page; return its path, unless somebody has edited the one that stands there.

    Args:
        path: of the page.
        text: its words, not escaped.
        charts: what it draws, by section.
        variants: how they look, by name; their place here is what owns a series of a chart.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    looks, sorting, script = (
        Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "sort.js", "page.js")
    )
    scripts = [get_plotlyjs(), sorting, script]
    page = fill(
        "page.html",
        text=text,
        charts=charts,
        variants=variants,
        told_apart=HOW_TOLD_APART,
        line_width=LINE_WIDTH,
        policy=f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes(scripts)}",
        looks=Markup(looks),
        data={
            "charts": {chart.key: to_plotly(chart) for section in charts.values() for chart in section},
            "colors": {paper: [getattr(look, paper) for look in variants.values()] for paper in ("light", "dark")},
        },
        scripts=[Markup(script) for script in scripts],
    )
    return write_text(path, page)


def hashes(scripts: list[str]) -> str:
    """Return what a content security policy calls these scripts."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
