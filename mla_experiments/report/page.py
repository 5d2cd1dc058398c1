"""The interactive page of a report: one file that opens from disk, with plotly inside, and all text escaped.

Its content security policy lets it load nothing, and run no script but its own two, which are named by their hashes:
should text ever get past the escaping, it still does nothing.
"""

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from pathlib import Path

from .charts import Chart, to_plotly
from .styles import LINE_WIDTH, Style
from .tables import Table
from .text import HOW_TOLD_APART, Text


def write_page(path: Path, text: Text, charts: dict[str, list[Chart]], variants: dict[str, Style]) -> Path:
    """Write the page; return its path.

    Args:
        path: of the page.
        text: its words, not escaped.
        charts: what it draws, by section.
        variants: how they look, by name; their place here is what owns a series of a chart.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    own = files(__package__)
    looks, script = ((own / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    scripts = [get_plotlyjs(), script]
    data = {
        "charts": {chart.key: to_plotly(chart) for section in charts.values() for chart in section},
        "colors": {paper: [getattr(look, paper) for look in variants.values()] for paper in ("light", "dark")},
    }
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes(scripts)}"
    page = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(text.title)}</title>\n<style>\n{looks}</style>\n</head>\n<body>",
            *body(text, charts, key(variants)),
            f'<script type="application/json" id="data">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>',
            *(f"<script>{source}</script>" for source in scripts),
            "</body>\n</html>\n",
        ]
    )
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(page, encoding="utf-8")
    scratch.replace(path)
    return path


def hashes(scripts: list[str]) -> str:
    """Return what a content security policy calls these scripts."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def body(text: Text, charts: dict[str, list[Chart]], key: str) -> list[str]:
    """Return the sections of the page; `key` stands above the charts of each."""
    headline, *more = text.answer
    samples = (f"<h3>{escape(who)}</h3><blockquote>{escape(said)}</blockquote>" for who, said in text.samples.items())
    return [
        f"<header><h1>{escape(text.title)}</h1></header>",
        f'<div class="notice">{escape(text.notice)}{items(text.failures)}</div>' if text.notice else "",
        f'<section class="answer"><p>{words(headline)}</p>{items(more)}</section>',
        f"<section><h2>Results</h2>{table(text.results)}",
        f"<p>± is the 95&nbsp;% interval over seeds. {words(text.matched)}",
        '<span class="screen">Click a heading to sort.</span></p></section>',
        section("Quality and cost", figures(key, charts["cost"])),
        section("Differences", table(text.differences), f"<p>{escape(HOW_TOLD_APART)}</p>"),
        section("Training", figures(key, charts["training"])) if charts["training"] else "",
        section("Learning rates", table(text.rates), figures(key, charts["rates"])),
        section("Samples", f"<p>What each says after “{escape(text.prompt)}”:</p>", *samples) if text.samples else "",
        section("How it was made", *made(text)),
    ]


def section(heading: str, *parts: str) -> str:
    """Return parts under a heading."""
    return "\n".join([f"<section><h2>{escape(heading)}</h2>", *parts, "</section>"])


def made(text: Text) -> list[str]:
    """Return how it was made, with the study and the commands to run it again."""
    return [
        items(text.made),
        f"<p>The study, as stated in <code>{escape(text.title)}.yaml</code>:</p><pre>{escape(text.source)}</pre>",
        f"<p>To run it again:</p><pre>{escape(chr(10).join(text.rerun))}</pre>",
        f"<details><summary>Everything that was set, presets and defaults included</summary>"
        f"<pre>{escape(text.settings)}</pre></details>",
    ]


def words(sentence: str) -> str:
    """Return an escaped sentence whose percentages are not torn from their signs."""
    return escape(sentence).replace(" %", "&nbsp;%")


def items(sentences: list[str]) -> str:
    """Return sentences as a list."""
    lines = "".join(f"<li>{words(sentence)}</li>" for sentence in sentences)
    return f"<ul>{lines}</ul>" if lines else ""


def table(content: Table) -> str:
    """Return a table whose headings sort it; what follows ± is as wide in all its column, so that means line up."""
    columns = zip(*content.rows, strict=True)
    widths = [max(len(cell.partition(" ± ")[2]) for cell in column) for column in columns]
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in content.headings)
    rows = "".join("<tr>" + "".join(map(cell, row, widths)) + "</tr>" for row in content.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def cell(content: str, width: int) -> str:
    """Return a cell, with so many digits' room after ±."""
    mean, sign, spread = content.partition(" ± ")
    rest = f'<span style="min-width: {width + 3}ch"> ± {escape(spread)}</span>' if sign else ""
    return f"<td>{escape(mean)}{rest}</td>"


def key(variants: dict[str, Style]) -> str:
    """Return the key to the lines of charts, whose entries show and hide a variant in all of them."""
    buttons = (
        f'<button type="button" data-owner="{number}" aria-pressed="true">{drawn(look)}{escape(name)}</button>'
        for number, (name, look) in enumerate(variants.items())
    )
    return f'<div class="key" role="group" aria-label="Variants shown">{"".join(buttons)}</div>'


def drawn(look: Style) -> str:
    """Return a style's line and mark as a small drawing."""
    return (
        '<svg viewBox="-18 -7 36 14" width="36" height="14" aria-hidden="true">'
        f'<path d="M-17,0H17" stroke-width="{LINE_WIDTH}" stroke-dasharray="{look.pixels}"/>'
        f'<path d="{look.mark[2]}"/></svg>'
    )


def figures(key: str, charts: list[Chart]) -> str:
    """Return the places of charts side by side, under their key."""
    return f'<div class="plots">{key}<div class="charts">{"".join(map(figure, charts))}</div></div>' if charts else ""


def figure(chart: Chart) -> str:
    """Return the place of a chart, with buttons for its axes."""
    buttons = "".join(
        f'<button type="button" data-chart="{chart.key}" data-axis="{axis}axis" '
        f'aria-pressed="{str(log).lower()}">log {axis}</button>'
        for axis, log in (("x", chart.log_x), ("y", chart.log_y))
    )
    return (
        f'<figure><h3>{escape(chart.title)}</h3><div class="chart" id="chart-{chart.key}" role="img" '
        f'aria-label="{escape(chart.title)}"></div><figcaption>{escape(chart.caption)} '
        f'<span class="axes">{buttons}</span></figcaption></figure>'
    )
