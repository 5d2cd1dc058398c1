"""One table for terminals and for pages: numbers to the right, and nothing that is said in a cell breaks out of it."""

import ast
from html.parser import HTMLParser

from conftest import REPOSITORY
from markdown_it import MarkdownIt

from mla_experiments.markdown import escaped, table


def test_columns_line_up_numbers_to_the_right_and_text_to_the_left():
    rows = [
        {"name": "mha", "ms": 1234.5, "tokens": 1000, "interval": "+0.1 to +0.2", "p": "< 0.1", "of": None},
        {"name": "long name", "ms": 0.012345, "tokens": 20, "interval": "\N{EN DASH}", "p": "0.25", "of": "1 ± 2"},
    ]
    assert table(rows).splitlines() == [
        "| name      |     ms | tokens |     interval |     p |    of |",
        "| --------- | -----: | -----: | -----------: | ----: | ----: |",
        "| mha       |  1,234 |  1,000 | +0.1 to +0.2 | < 0.1 |       |",
        "| long name | 0.0123 |     20 |            \N{EN DASH} |  0.25 | 1 ± 2 |",
    ]
    assert table([]) == ""


def test_text_stays_in_its_cell_on_a_terminal_and_is_no_markup_on_a_page():
    rows = [{"a_b": "x | y\nz", "c": "<b> *d*"}]
    assert table(rows).splitlines()[2] == r"| x \| y z | <b> *d* |"
    cells, page = [], HTMLParser()
    page.handle_data = cells.append
    page.feed(MarkdownIt("gfm-like", {"linkify": False}).render(table(rows, escaped)))
    assert [text for text in cells if text.strip()] == ["a_b", "c", "x | y z", "<b> *d*"]


def test_html_is_in_templates_alone():
    for path in sorted((REPOSITORY / "mla_experiments" / "report").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
                assert not any("</" in part or "/>" in part for part in parts), f"{path}:{node.lineno}"
