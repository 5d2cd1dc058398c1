"""Choose an attention for your text: `choose TEXT --cache-bytes-per-token 2048 --params 5M`."""

import re
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..next_step import as_typed_here, elsewhere
from ..stopping import say_how_to_stop
from .needs import STATISTICS, need
from .parsing import parse
from .saying import wrote

LARGEST = 1e12
UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}

EXAMPLES = """examples:
  mla-experiments choose notes.txt --cache-bytes-per-token 2048 --params 5M --hours 2
  mla-experiments choose notes.txt --cache-bytes-per-token 2048 --attention gqa mla gta mfa --plan-only"""


@dataclass
class ChooseArguments:
    """The question, and how long the answer may take."""

    cache_bytes_per_token: int = field(
        metadata={"help": "budget of the cache in all layers, in single precision", "minimum": 1}
    )
    params: str = field(default="2M", metadata={"help": "size of the model: 5M, 800k, or a number"})
    hours: float = field(default=1.0, metadata={"help": "for everything", "above": 0})
    attention: list[str] = field(
        default_factory=list,
        metadata={
            "help": "what to choose among; the keys and values of heads, shared or not, and latents if not given"
        },
    )
    studies_dir: str = field(default="studies", metadata={"help": "holds data, runs and studies"})
    plan_only: bool = field(default=False, metadata={"help": "prepare the text, write the study, and run nothing"})
    no_browser: bool = field(default=False, metadata={"help": "do not open the report when it is written"})


def run(argv: list[str]) -> None:
    """Run it."""
    given, where = parse(
        [ChooseArguments],
        argv,
        "choose",
        __doc__,
        positional={"TEXT": "your text: a file, a folder, or a corpus"},
        examples=EXAMPLES,
    )
    parameters = size_of(given["params"])
    need(*STATISTICS, "plotly")
    from transformers.utils import logging

    from ..report.answer import answer
    from ..report.findings import read_findings
    from ..report.study import write_findings
    from ..study import read_study, run_study
    from ..study.proposal import Question, propose

    logging.disable_progress_bar()  # one bar at a time: the run's own
    name = "choose-" + (re.sub(r"[^A-Za-z0-9]+", "-", Path(where["TEXT"]).stem).strip("-") or "text")
    root, path = Path(given["studies_dir"]), Path(given["studies_dir"]) / f"{name}.yaml"
    asked = {"attention": tuple(given["attention"])} if given["attention"] else {}
    question = Question(where["TEXT"], given["cache_bytes_per_token"], parameters, given["hours"], **asked)
    print(*propose(question, path, root), sep="\n")
    again = as_typed_here(f"mla-experiments study {path}{elsewhere(studies_dir=root)}")
    if given["plan_only"]:
        wrote(path, "the study", again)
        return
    print(f"The study is in {path}; it can be edited, and run again with: {again}")
    say_how_to_stop()
    outcome = run_study(read_study(path), root)
    found = read_findings(outcome.folder)
    written = write_findings(outcome.folder, found)
    print("", *answer(found).sentences, "", sep="\n")
    opened = not given["no_browser"] and webbrowser.open(written[0].resolve().as_uri())
    wrote(written[0], "opened in your browser" if opened else "open it in a browser", f"mla-experiments plan {path}")


def size_of(stated: str) -> int:
    """Return a number of parameters: "5M", "800k", "1.5B" or a number.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", stated.strip().lower())
    if not found or not 1 <= (number := float(found[1]) * UNITS[found[2]]) <= LARGEST:
        raise UserError(f"params={stated} must be a number of parameters, such as 5M or 800k")
    return int(number)
