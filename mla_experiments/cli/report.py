"""Write the report of a study, finished or not: `report studies/NAME`."""

from pathlib import Path

from .needs import STATISTICS, need
from .parsing import parse
from .saying import wrote


def run(argv: list[str]) -> None:
    """Run it."""
    (where,) = parse([], argv, "report", __doc__, positional={"STUDY": "folder of a study"})
    need(*STATISTICS, "plotly")
    from ..report.study import write_report

    written = write_report(Path(where["STUDY"]))
    wrote(written[0], f"and {len(written) - 1} other files", "", False)
