"""Measure speed and memory beside transformers' own models: `bench WHAT`, `bench --help` lists what."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .parsing import parse
from .saying import wrote


@dataclass
class BenchmarkOutput:
    """Where results go."""

    output_dir: str = field(default="benchmarks/results", metadata={"help": "where the JSON and the figure go"})


def run(argv: list[str]) -> None:
    """Run it."""
    from ..benchmark import MEASUREMENTS
    from ..benchmark.measure import save
    from ..markdown import table
    from ..report.figures import draw_rows

    files = MEASUREMENTS.items()
    modules = {name: importlib.import_module(f"..benchmark.{file}", __package__) for name, file in files}
    if argv and argv[0] in ("-h", "--help"):
        print("usage: mla-experiments bench WHAT [--flag VALUE ...]\n\n" + (__doc__ or "") + "\n")
        for name, module in modules.items():
            print(f"  {name:<12}{module.Arguments.__doc__}")
        print("\nmla-experiments bench WHAT --help lists the flags of each.")
        return
    if not argv or argv[0] not in modules:
        found = f"bench {argv[0]} is unknown" if argv else "bench needs to know what to measure"
        raise UserError(f"{found}; choose one of {', '.join(modules)}")
    kind, *argv = argv
    module = modules[kind]
    given, output = parse([module.Arguments, BenchmarkOutput], argv, f"bench {kind}", module.__doc__, positive=True)
    rows = module.measure(module.Arguments(**given))
    if not rows:
        raise UserError(f"bench {kind} had nothing to measure with {given}; give at least one of each list")
    print(table(rows))
    written = [save(kind, {"arguments": given, "rows": rows}, Path(output["output_dir"]))]
    if module.FIGURE:
        written.append(draw_rows(rows, written[0].with_suffix(".png"), title=module.Arguments.__doc__, **module.FIGURE))
    wrote(", ".join(map(str, written)), "with the machine", "", False)
