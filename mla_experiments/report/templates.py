"""Templates beside this file: what is put into them is escaped, for HTML or for Markdown, unless it is marked safe."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..markdown import escaped, table

SPREAD = re.compile(r" (± .*|\(.*\))$")
SETTINGS: dict[str, Any] = {
    "undefined": StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
}


def fill(name: str, **values) -> str:
    """Return a template, `*.html` or `*.md`, with values in it."""
    is_page = name.endswith(".html")
    own: dict[str, Any] = {"autoescape": True} if is_page else {"finalize": as_markdown}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **SETTINGS, **own)
    environment.filters |= {"unbroken": unbroken, "spread": spread, "table": as_table, "block": block}
    return environment.get_template(name).render(values)


def as_markdown(value: object) -> str:
    """Return text as Markdown in which nothing of it is markup, unless it is marked safe."""
    return value if isinstance(value, Markup) else escaped(str(value))


def as_table(rows: list[dict[str, str]]) -> Markup:
    """Return a table as Markdown."""
    return Markup(table(rows, escaped))


def block(text: str) -> Markup:
    """Return text as a block of code in Markdown, in which nothing is markup."""
    return Markup("\n".join(f"    {line}" for line in text.strip().splitlines()))


def unbroken(sentence: str) -> str:
    """Return a sentence whose percentages are not torn from their signs."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def spread(rows: list[dict[str, str]]) -> list[list[tuple[str, str, int]]]:
    """Return the cells of a table as the number, the spread behind it, and how long that is at most in the column."""
    cells = [[(name, ""), *map(parted, numbers)] for name, *numbers in (row.values() for row in rows)]
    widths = [max(len(after) for _, after in column) for column in zip(*cells, strict=True)]
    return [[(*cell, width) for cell, width in zip(row, widths, strict=True)] for row in cells]


def parted(cell: str) -> tuple[str, str]:
    """Return a cell up to its spread, ± or a range in brackets, and the spread."""
    found = SPREAD.search(cell)
    return (cell[: found.start()], found[0]) if found else (cell, "")
