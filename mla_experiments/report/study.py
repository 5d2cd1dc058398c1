"""The report of a study, the answer first: `report.md`, figures, `report.json`, and one page that needs no network."""

from pathlib import Path

from ..texts import write_text
from .charts import Chart, draw
from .findings import Findings, read_findings
from .page import write_page
from .study_charts import charts, drawn
from .summary import SUMMARY, write_summary
from .templates import fill
from .text import HOW_TOLD_APART, Text, text_of


def write_report(folder: Path) -> list[Path]:
    """Write `report.html`, `.md` and `.json` and `figures/` into a study's folder, finished or not; return their paths.

    Raises:
        UserError: no study there, or none of its runs has come to its end.
        ModuleNotFoundError: plotly is not installed.
    """
    return write_findings(Path(folder), read_findings(folder))


def write_findings(folder: Path, found: Findings) -> list[Path]:
    """Write the report of what was found into a study's folder; see `write_report`."""
    text, sections = text_of(found), charts(found)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    files = [path for section in sections.values() for chart in section for path in draw(chart, figures)]
    markdown = write_text(folder / "report.md", to_markdown(text, sections))
    variants = {name: look for name, (_, look) in drawn(found).items()}
    page = write_page(folder / "report.html", text, sections, variants)
    return [*page, *markdown, write_summary(folder / SUMMARY, found), *files]


def to_markdown(text: Text, charts: dict[str, list[Chart]]) -> str:
    """Return `report.md`, which shows the figures in `figures/`."""
    return fill("report.md", text=text, charts=charts, told_apart=HOW_TOLD_APART)
