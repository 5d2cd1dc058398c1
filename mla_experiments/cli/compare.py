"""Put studies and runs side by side: `compare studies/NAME weights/mha …`; refuses what does not compare."""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .needs import STATISTICS, need
from .parsing import parse


@dataclass
class CompareArguments:
    """Where runs are looked for."""

    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


def run(argv: list[str]) -> None:
    """Run it."""
    places = []
    while argv and not argv[0].startswith("-"):
        places.append(argv.pop(0))
    (given,) = parse([CompareArguments], argv, "compare", __doc__)
    if not places:
        raise UserError("compare needs folders of studies or runs; give some: mla-experiments compare A B")
    need(*STATISTICS)
    from ..report.comparison import compared

    print(compared(places, Path(given["weights_dir"])))
