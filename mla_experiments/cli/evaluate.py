"""Evaluate trained models on held-out text: perplexities, bits per byte, cache, size.

With `--cache_dtype` or `--weight_dtype`: what a cache or weights in fewer bits cost, beside what they save.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..manifest import check_folder, keep_others, library_versions, write_record
from ..next_step import as_typed_here, elsewhere
from .needs import STATISTICS, need
from .parsing import parse
from .saying import wrote

EXAMPLES = """examples:
  mla-experiments eval                               all models in weights/, on the held-out text of data/
  mla-experiments eval mla mha --corpus other.txt    two of them, on any text
  mla-experiments eval mla --tasks needle copy       what they find again of what they have read
  mla-experiments eval mla --cache_dtype int8        what a cache in fewer bits costs
  mla-experiments eval mla --weight_dtype int8       and what weights do"""
SIGNED = ("difference", "95 % from", "to", "in percent")


@dataclass
class EvaluationArguments:
    """Which models to evaluate, and on what."""

    models: list[str] = field(
        default_factory=list, metadata={"help": "folders of models, or names under WEIGHTS_DIR; all if not given"}
    )
    corpus: str | None = field(
        default=None,
        metadata={"help": "held-out text (a path); by default validation and test splits of the prepared corpus"},
    )
    text_column: str = field(default="text", metadata={"help": "column that holds the text of a table"})
    data_dir: str = field(default="data", metadata={"help": "holds the prepared corpus"})
    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})
    output_dir: str = field(default=".", metadata={"help": "where results.json and results.md go"})
    tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "in place of it ask what synthetic tasks ask (needle, copy, ...), in words of the model's own, or "
            "run lm-evaluation-harness: names of its tasks, YAML files, or `documents`"
        },
    )
    cache_dtype: str | None = field(
        default=None,
        metadata={"help": "in place of it measure what a cache in bf16, f16 or int8 costs in bits per byte"},
    )
    weight_dtype: str | None = field(default=None, metadata={"help": "and what weights in bf16, f16 or int8 cost"})
    limit: int | None = field(
        default=None, metadata={"help": "documents of each of the TASKS; by default all", "minimum": 1}
    )


def run(argv: list[str]) -> None:
    """Run it."""
    models = []
    while argv and not argv[0].startswith("-"):
        models.append(argv.pop(0))
    argv = ["--models", *models, *argv] if models else argv
    (given,) = parse([EvaluationArguments], argv, "eval", __doc__, examples=EXAMPLES)
    output_dir, tasks, limit = Path(given.pop("output_dir")), given.pop("tasks"), given.pop("limit")
    if limit and not tasks:
        raise UserError(f"limit={limit} is of the documents of tasks, and has no effect without --tasks; leave it out")
    check_folder(output_dir, "output_dir")
    fewer = {name: dtype for name in ("cache_dtype", "weight_dtype") if (dtype := given.pop(name))}
    if fewer:
        (name, dtype), *others = *fewer.items(), *([("tasks", tasks[0])] if tasks else [])
        if others:
            other = "{}={}".format(*others[0])
            raise UserError(
                f"{name}={dtype} is measured on text and alone, and not with {other}; leave one of them out"
            )
        return evaluate_in_fewer_bits(name, dtype, given, output_dir)
    if tasks:
        return evaluate_on_tasks(tasks, limit, given, output_dir)
    from ..evaluation import evaluate_models, evaluate_on_task, known_rows, task_asked_for
    from ..report import write_model_card

    keep_others(output_dir / "results.json", output_dir / "results.md")
    if task := task_asked_for(given["corpus"], Path(given["data_dir"])):
        results = evaluate_on_task(given["models"], task, given["weights_dir"])
    else:
        results = evaluate_models(**given, known=known_rows(output_dir))
    for folder in results.run_folders:
        write_model_card(folder)
    print(results.table())
    if len(results.run_folders) > 1:
        print(
            "\nOne run each: what lies between them may be chance. What is told apart, and how surely, takes a study:"
        )
        print(to_be_sure())
    written = results.save(output_dir)
    wrote(", ".join(map(str, written)), f"{len(results.rows)} evaluations", to_generate(given))


def to_be_sure() -> str:
    """Return a command that compares over seeds and documents: the study of a clone, if this is one."""
    if (study := Path("experiments/attention.yaml")).is_file():
        return f"{as_typed_here(f'mla-experiments study {study}')} (corpus: PATH in it takes your own text)"
    return as_typed_here("mla-experiments choose TEXT --cache-bytes-per-token BYTES")


def to_generate(given: dict) -> str:
    """Return how to hear one of the models."""
    return f"mla-experiments generate --model NAME{elsewhere(weights_dir=given['weights_dir'])}"


def evaluate_on_tasks(tasks: list[str], limit: int | None, given: dict, output_dir: Path) -> None:
    """Ask what synthetic tasks ask, or run the harness; the two do not mix."""
    from ..data.synthetic import TASKS

    ours = [name for name in tasks if name in TASKS]
    if not ours:
        return evaluate_by_harness(tasks, limit, given, output_dir)
    if others := [name for name in tasks if name not in TASKS]:
        raise UserError(f"tasks={ours[0]} is synthetic and {others[0]} is not; ask for them one after the other")
    if limit or given["corpus"]:
        given_too = f"limit={limit}" if limit else f"corpus={given['corpus']}"
        raise UserError(f"tasks={ours[0]} is drawn, so that {given_too} has no effect; leave it out")
    from ..evaluation import probe_models
    from ..evaluation.results import with_headings
    from ..markdown import table

    keep_others(written := output_dir / "probes.json")
    rows = probe_models(given["models"], ours, given["weights_dir"])
    print(table(with_headings(rows, but=set())))
    output_dir.mkdir(parents=True, exist_ok=True)
    write_record(written, {"versions": library_versions(), "results": rows})
    wrote(written, f"{len(rows)} conditions", to_generate(given))


def evaluate_in_fewer_bits(name: str, dtype: str, given: dict, output_dir: Path) -> None:
    """Print what fewer bits cost every model, paired by documents, and write `cache.json` or `weights.json`."""
    need(*STATISTICS)
    import numpy as np

    from ..evaluation.fewer_bits import STORAGES, scored_twice
    from ..evaluation.measures import BITS
    from ..kernels.stored import STORED
    from ..markdown import table
    from ..study.statistics import compared

    rows, storage = [], STORAGES[name]
    if dtype not in STORED:
        raise UserError(f"{name}={dtype} is unknown; choose one of {', '.join(STORED)}")
    keep_others(written := output_dir / f"{storage.name}.json")
    for one in scored_twice(storage, dtype, **given):
        nats = [np.array([document.nats for document in score.documents]) for score in (one.exact, one.kept)]
        num_bytes = np.array([document.bytes for document in one.exact.documents])
        found = compared("exact", dtype, {0: BITS.scale * nats[0]}, {0: BITS.scale * nats[1]}, num_bytes)
        low, high = found.over_documents or (None, None)
        rows.append(
            {
                "model": one.model,
                "split": one.split,
                "bits/byte": one.exact.bits_per_byte,
                f"with {dtype}": one.kept.bits_per_byte,
                "difference": found.difference,
                "95 % from": low,
                "to": high,
                "in percent": 100 * found.difference / one.exact.bits_per_byte,
                storage.unit: one.exact_bytes,
                f"in {dtype}": one.kept_bytes,
            }
        )
    shown = [
        {key: f"{value:+.6f}" if key in SIGNED and value is not None else value for key, value in row.items()}
        for row in rows
    ]
    print(table(shown))
    output_dir.mkdir(parents=True, exist_ok=True)
    write_record(written, {"versions": library_versions(), name: dtype, "results": rows})
    wrote(written, f"{len(rows)} differences, paired by documents", f"{to_generate(given)} --{name} {dtype}")


def evaluate_by_harness(tasks: list[str], limit: int | None, given: dict, output_dir: Path) -> None:
    """Run tasks of lm-evaluation-harness and write `harness.json`."""
    from ..evaluation.harness import evaluate_tasks
    from ..markdown import table

    keep_others(written := output_dir / "harness.json")
    rows = evaluate_tasks(tasks, limit=limit, **given)
    print(table([row | {"value": f"{row['value']:,.4f}"} for row in rows]))
    output_dir.mkdir(parents=True, exist_ok=True)
    write_record(written, {"versions": library_versions(), "limit": limit, "results": rows})
    following = f"mla-experiments export RUN --to hf OUT{elsewhere(weights_dir=given['weights_dir'])}"
    wrote(written, f"{len(rows)} values", following)
