"""Run all that a study still lacks: `study experiments/NAME.yaml`. Stop it at any time and start it again."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..stopping import say_how_to_stop
from .parsing import parse
from .saying import refusal, wrote

EXAMPLES = """examples:
  mla-experiments study experiments/attention.yaml                       run what is missing; stop at any time
  mla-experiments study experiments/attention.yaml --executor local:2    two runs at a time
  mla-experiments plan experiments/attention.yaml --hardware this        what it would take, beforehand"""


@dataclass
class StudyArguments:
    """Where studies live, and where their runs take place."""

    studies_dir: str = field(default="studies", metadata={"help": "holds data, runs and studies"})
    executor: str = field(
        default="serial", metadata={"help": "serial, local:N (N processes, a GPU each if there are any), or ray"}
    )
    address: str | None = field(
        default=None, metadata={"help": "HOST:PORT of a Ray cluster; by default the one here, or a new one"}
    )
    shard: str = field(default="1/1", metadata={"help": "i/n: only every n-th run from the i-th, counted from 1"})
    accept_changes: bool = field(
        default=False, metadata={"help": "take runs for the same though the code that trains has changed since"}
    )


def fields_of_a_study() -> str:
    """Return what a study's file may state, a line each."""
    from ..study.schema import listed

    rows = list(listed())
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"  {name:<{width}}{meaning}" for name, meaning in rows]
    return "\n".join(["fields of the file:", *lines, "", EXAMPLES])


def run(argv: list[str]) -> int:
    """Run it."""
    places = {"FILE": "YAML file of the study"}
    given, where = parse([StudyArguments], argv, "study", __doc__, positional=places, examples=fields_of_a_study())
    from transformers.utils import logging

    from ..study import read_study, run_study, shard_of

    logging.disable_progress_bar()  # one bar at a time: the run's own
    given |= {"root": Path(given.pop("studies_dir")), "shard": shard_of(given["shard"])}
    say_how_to_stop()
    outcome = run_study(read_study(Path(where["FILE"])), **given)
    wrote(outcome.folder, f"{len(outcome.failures)} failed runs", f"mla-experiments report {outcome.folder}")
    if outcome.left:
        print(outcome.left)
    for failure in outcome.failures:
        print(refusal(failure), file=sys.stderr)
    return 1 if outcome.failures else 0
