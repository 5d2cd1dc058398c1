"""The interactive page of a report: one file that opens from disk, with plotly inside, and all text escaped."""

import json
import re
from html import escape
from pathlib import Path

from .charts import Chart, to_plotly

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #ccc; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #161616; --line: #444; --soft: #222; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
       max-width: 72rem; padding: 1rem; }
.answer { font-size: 1.15rem; border-left: 4px solid var(--ink); padding-left: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; cursor: pointer; padding: 0; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.chart { height: 26rem; margin: 1.5rem 0 0; }
.axes button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line);
               border-radius: .3rem; padding: .1rem .6rem; cursor: pointer; }
pre { white-space: pre-wrap; background: var(--soft); padding: .6rem; }
@media print { .axes { display: none } .chart { break-inside: avoid } }
"""

SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const ink = getComputedStyle(document.body).color;
for (const [key, chart] of Object.entries(charts)) {
  const place = document.getElementById("chart-" + key);
  chart.layout.font = {color: ink};
  Plotly.newPlot(place, chart.data, chart.layout, chart.config);
  for (const button of document.querySelectorAll(`[data-chart="${key}"]`)) {
    button.addEventListener("click", () => {
      const type = place.layout[button.dataset.axis].type === "log" ? "linear" : "log";
      Plotly.relayout(place, {[button.dataset.axis + ".type"]: type});
      button.setAttribute("aria-pressed", type === "log");
    });
  }
}
const number = text => { const n = parseFloat(text.replaceAll(",", "")); return isNaN(n) ? text : n; };
document.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [a, b].map(row => number(row.cells[column].textContent));
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
  });
  body.append(...rows);
}));
"""


def write_page(path: Path, name: str, parts: dict, charts: list[Chart]) -> Path:
    """Write the page; return its path.

    Args:
        path: of the page.
        name: of the study.
        parts: texts by section, unescaped, see `study.sections`.
        charts: what it draws.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    data = json.dumps({chart.key: to_plotly(chart) for chart in charts}).replace("<", "\\u003c")
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="answer">{" ".join(emphasised(sentence) for sentence in parts["answer"])}</p>',
        table(parts["headings"], parts["rows"]),
        f"<p>± is the 95 % interval over seeds. {escape(parts['matched'])} Click a heading to sort.</p>",
        "<h2>Differences</h2>",
        items(parts["comparisons"]),
        f"<p>{escape(parts['how_told_apart'])}</p>",
        "<h2>Figures</h2><p>Click a name in a legend to hide or show it.</p>",
        *(figure(chart) for chart in charts),
        "<h2>Learning rates</h2>",
        items(parts["rates"]),
        "<h2>Samples</h2>",
        *(f"<h3>{escape(who)}</h3><pre>{escape(text)}</pre>" for who, text in parts["samples"].items()),
        "<h2>How it was made</h2>",
        items(parts["made"]),
    ]
    page = "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(name)}</title><style>{STYLE}</style></head><body>",
            *body,
            f'<script type="application/json" id="charts">{data}</script>',
            f"<script>{get_plotlyjs()}</script><script>{SCRIPT}</script></body></html>",
        ]
    )
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(page, encoding="utf-8")
    scratch.replace(path)
    return path


def emphasised(text: str) -> str:
    """Escape text and turn `**strong**` into markup."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))


def items(sentences: list[str]) -> str:
    """Return sentences as a list."""
    return "<ul>" + "".join(f"<li>{emphasised(sentence)}</li>" for sentence in sentences) + "</ul>"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a table whose headings sort it."""
    head = "".join(f'<th scope="col"><button type="button">{escape(heading)}</button></th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(chart: Chart) -> str:
    """Return the place of a chart, with buttons for its axes."""
    buttons = "".join(
        f'<button type="button" data-chart="{chart.key}" data-axis="{axis}axis" '
        f'aria-pressed="{str(log).lower()}">log {axis}</button> '
        for axis, log in (("x", chart.log_x), ("y", chart.log_y))
    )
    return f'<div class="chart" id="chart-{chart.key}"></div><div class="axes">{buttons}</div>'
