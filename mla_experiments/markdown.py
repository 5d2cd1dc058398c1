"""Markdown: tables that read well on a terminal too, and text from elsewhere, which may hold anything, in it."""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape

MARKUP = re.compile(r"([\\`*_\[\]|~#])")
NUMBER = r"[-+]?(\d[\d,.]*|\.\d+)(e[-+]?\d+)?"
NUMBERS = re.compile(rf"(< )?{NUMBER}(( ± | to |, ){NUMBER})*|nan|-?inf|\N{{EN DASH}}|")  # what stands to the right


def escaped(text: str) -> str:
    """Return text in which nothing is markup, neither Markdown's nor HTML's."""
    return MARKUP.sub(r"\\\1", escape(" ".join(text.split()), quote=False))


def in_cell(text: str) -> str:
    """Return text as a terminal shows it in a table, whose columns it does not part."""
    return " ".join(text.split()).replace("|", r"\|")


def table(rows: Sequence[Mapping[str, object]], as_text: Callable[[str], str] = in_cell) -> str:
    """Return rows with equal keys as a Markdown table, columns of numbers to the right.

    Args:
        rows: values by heading, which names the unit too. Numbers are shown with three digits or whole; what is shown
            with others comes as text. None leaves its cell empty.
        as_text: how text is shown; `escaped` in files, which become pages.

    Returns:
        Lines without the last one's end; nothing where there is no row.
    """
    if not rows:
        return ""
    columns = [column(heading, [shown(row[heading]) for row in rows], as_text) for heading in rows[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def column(heading: str, cells: list[str], as_text: Callable[[str], str]) -> list[str]:
    """Return the cells of a column, heading and rule before them, all of one width."""
    to_right = any(cells) and all(map(NUMBERS.fullmatch, cells))
    texts = [as_text(text) for text in (heading, *cells)]
    width = max(3, *map(len, texts))
    head, *rest = (text.rjust(width) if to_right else text.ljust(width) for text in texts)
    return [head, "-" * (width - 1) + (":" if to_right else "-"), *rest]


def shown(value: object) -> str:
    """Return a value as text: whole numbers with their thousands parted, others with three digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
