"""A study's report as Markdown, all text escaped: names of corpora and what models generate may hold anything."""

from ..markdown import escaped
from .charts import Chart
from .tables import Table
from .text import HOW_TOLD_APART, Text


def to_markdown(text: Text, charts: dict[str, list[Chart]]) -> str:
    """Return `report.md`, which shows the figures in `figures/`."""
    headline, *more = text.answer
    samples = [line for who, said in text.samples.items() for line in (f"**{escaped(who)}**", "", block(said), "")]
    lines = [
        f"# {escaped(text.title)}", "",
        *([f"**{escaped(text.notice)}**", "", *items(text.failures), ""] if text.notice else []),
        f"**{escaped(headline)}**", "", *items(more), "",
        *table(text.results), "", f"± is the 95 % interval over seeds. {escaped(text.matched)}", "",
        "## Quality and cost", "", *figures(charts["cost"]),
        "## Differences", "", *table(text.differences), "", HOW_TOLD_APART, "",
        "## Training", "", *figures(charts["training"]),
        "## Learning rates", "", *table(text.rates), "", *figures(charts["rates"]),
        "## Samples", "", f"What each says after “{escaped(text.prompt)}”:", "", *samples,
        "## How it was made", "", *items(text.made), "",
        f"The study, as stated in {escaped(text.title)}.yaml:", "", block(text.source), "",
        "To run it again:", "", block("\n".join(text.rerun)), "",
        "<details><summary>Everything that was set, presets and defaults included</summary>", "",
        block(text.settings), "", "</details>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def items(sentences: list[str]) -> list[str]:
    """Return sentences as a list."""
    return [f"- {escaped(sentence)}" for sentence in sentences]


def table(content: Table) -> list[str]:
    """Return a table whose cells stand to the right, but for the first."""
    rows = [content.headings, *content.rows]
    head, *body = ("| " + " | ".join(map(escaped, row)) + " |" for row in rows)
    return [head, "|---" + "|--:" * (len(content.headings) - 1) + "|", *body]


def figures(charts: list[Chart]) -> list[str]:
    """Return figures, each with its caption."""
    return [line for c in charts for line in (f"![{escaped(c.title)}](figures/{c.key}.png)", "", c.caption, "")]


def block(text: str) -> str:
    """Return text as a block of code, in which nothing is markup."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines())
