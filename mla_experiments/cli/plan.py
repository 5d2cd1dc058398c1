"""Say what a model or a study would cost without running it: `plan deepseek-v2 --kv_lora_rank 256`."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .needs import STATISTICS, need
from .parsing import parse, with_files_of_mechanisms

POSITIVE = {"above": 0}


@dataclass
class PlanArguments:
    """Where and how the model would run, and what if it were another."""

    hardware: str = field(default="h100", metadata={"help": "h100, h200, a100, rtx-4090, or this (measured)"})
    memory_gib: float | None = field(default=None, metadata={"help": "memory to fit into"} | POSITIVE)
    gb_per_second: float | None = field(default=None, metadata={"help": "rate of memory"} | POSITIVE)
    tflop_per_second: float | None = field(default=None, metadata={"help": "best rate of arithmetic"} | POSITIVE)
    utilisation: float = field(default=0.2, metadata={"help": "of a study: assumed share of the best rate"} | POSITIVE)
    contexts: list[int] = field(
        default_factory=lambda: [4096, 32768], metadata={"help": "tokens in the cache"} | POSITIVE
    )
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 32], metadata={"help": "sequences decoded together"} | POSITIVE
    )
    attention: str | None = field(
        default=None, metadata={"help": "what if it had another: mha gqa mqa mla, or mla+mha"}
    )
    difference: float | None = field(
        default=None, metadata={"help": "of a study: bits per byte to be told; says how many seeds it takes"} | POSITIVE
    )
    studies_dir: str = field(default="studies", metadata={"help": "with difference: what the study found so far"})


def run(argv: list[str]) -> None:
    """Run it."""
    from ..benchmark.hardware import hardware_of
    from ..benchmark.plan import architecture_of, changed, facts, plan
    from ..markdown import table
    from ..modeling.attention import ATTENTION

    argv = with_files_of_mechanisms(argv, {"attention"})  # whose options are flags too
    known: dict[str, tuple[Any, list[str]]] = {}  # option: what it may be, and the mechanisms that know it
    for name, mechanism in ATTENTION.items():
        for option, kind in sorted(mechanism.option_types().items()):
            known.setdefault(option, (kind | None, []))[1].append(name)
    what_if = make_dataclass("WhatIf", [
        (option, kind, field(default=None, metadata={"help": f"what if: of {', '.join(names)}"} | _range(kind)))
        for option, (kind, names) in known.items()
    ])  # fmt: skip
    argv = (
        ["reference", *argv] if argv[:1] not in (["-h"], ["--help"]) and (not argv or argv[0].startswith("-")) else argv
    )
    places = {"MODEL": "a well-known name (by default: reference), a folder with config.json, or a study's YAML file"}
    given, what_if, where = parse([PlanArguments, what_if], argv, "plan", __doc__, positional=places)
    own = {name: given[name] for name in ("memory_gib", "gb_per_second", "tflop_per_second")}
    options = {name: value for name, value in what_if.items() if value is not None}
    if where["MODEL"].endswith((".yaml", ".yml")):
        if options or given["attention"]:
            raise UserError("--attention and its options are for models; a study states its own in its file")
        from ..study import read_study, study_plan

        stated, hardware = read_study(Path(where["MODEL"])), hardware_of(given["hardware"], own)
        rows = study_plan(stated, hardware, given["utilisation"])
        print(table(rows))
        if given["difference"]:
            need(*STATISTICS)
            from ..report.power import seeds_needed

            print("\n" + seeds_needed(stated, rows, Path(given["studies_dir"]), given["difference"]))
        return
    if given["difference"]:
        raise UserError(f"difference={given['difference']} is for studies; give the YAML file of one")
    architecture = changed(architecture_of(where["MODEL"]), given["attention"], options)
    hardware = hardware_of(given["hardware"], own)
    named = f"hardware: {given['hardware']}; --hardware names another"
    print("\n".join([*facts(architecture, hardware), named]) + "\n")
    print(table(plan(architecture, hardware, given["contexts"], given["batch_sizes"])))


def _range(kind):
    """Sizes are positive; what is true or false is what it is."""
    return {} if kind == bool | None else POSITIVE
