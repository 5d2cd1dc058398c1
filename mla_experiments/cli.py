"""The command line: one sub-command a stage, each printing what it wrote and what to run next.

Flags are the fields of dataclasses, parsed by transformers' HfArgumentParser, so that those of its Trainer keep their
names. `--config FILE` reads the same flags from YAML; what stands on the command line goes before it.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path

from .allocator import keep_freed_memory
from .errors import Stopped, UserError, reason_of


@dataclass
class DataArguments:
    """From a corpus to packed tokens."""

    corpus: str = field(
        default="auto",
        metadata={
            "help": "auto (WikiText-103, or wiki-sample offline), wikitext-2, wikitext-103, wiki-sample, "
            "hub:NAME[:CONFIG], or the path of a text, Markdown, JSON, CSV, TSV, parquet or Arrow file, compressed or "
            "not, or of a folder of them"
        },
    )
    text_column: str = field(default="text", metadata={"help": "column that holds the text of a table"})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "store a sample of hub:NAME[:CONFIG] or a folder of parquet files alone, and train from the "
            "rest where it is (train_model.py --streaming)"
        },
    )
    sample_characters: int = field(
        default=100_000_000,
        metadata={"help": "with --streaming: store so many, held-out text and what trains the tokenizer"},
    )
    vocab_size: int = field(default=10_000, metadata={"help": "entries of the tokenizer, all included"})
    sequence_length: int = field(default=1024, metadata={"help": "tokens in a packed row"})
    shuffle_seed: int = field(default=0, metadata={"help": "of the order of training rows"})
    data_dir: str = field(default="data", metadata={"help": "folder for corpus/, tokenizer/ and tokens/"})


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
        metadata={"help": "in place of it run lm-evaluation-harness: names of its tasks, YAML files, or `documents`"},
    )
    limit: int | None = field(default=None, metadata={"help": "documents of each of the TASKS; by default all"})


@dataclass
class GenerationArguments:
    """Which model continues which text."""

    model: str = field(metadata={"help": "folder of a trained model, or its name under WEIGHTS_DIR"})
    prompt: str = field(default="", metadata={"help": "the text to continue"})
    max_new_tokens: int = field(default=100, metadata={"help": "length of the continuation in tokens"})
    temperature: float = field(default=0.8, metadata={"help": "0 always takes the likeliest token"})
    top_k: int = field(default=50, metadata={"help": "sample among this many likeliest tokens"})
    seed: int = field(default=0, metadata={"help": "of the sampling"})
    backend: str | None = field(
        default=None, metadata={"help": "of MLA's decoding (`mla-experiments kernels`); by default the fastest"}
    )
    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


@dataclass
class ConversionArguments:
    """How a checkpoint is written in another form."""

    overwrite: bool = field(default=False, metadata={"help": "replace what stands in OUT"})


@dataclass
class ExportArguments(ConversionArguments):
    """Which form."""

    to: str = field(default="hf", metadata={"help": "hf, a stock checkpoint of transformers"})
    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


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


@dataclass
class CompareArguments:
    """Where runs are looked for."""

    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


@dataclass
class PlanArguments:
    """Where and how the model would run, and what if it were another."""

    hardware: str = field(default="h100", metadata={"help": "h100, h200, a100, rtx-4090, or this (measured)"})
    memory_gib: float | None = field(default=None, metadata={"help": "memory to fit into, in place of the hardware's"})
    gb_per_second: float | None = field(default=None, metadata={"help": "rate of memory, in place of the hardware's"})
    tflop_per_second: float | None = field(default=None, metadata={"help": "best rate, in place of the hardware's"})
    utilisation: float = field(default=0.2, metadata={"help": "of a study: share of the best rate, as an assumption"})
    contexts: list[int] = field(default_factory=lambda: [4096, 32768], metadata={"help": "tokens in the cache"})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32], metadata={"help": "sequences decoded together"})
    attention: str | None = field(default=None, metadata={"help": "what if it had another mechanism: mha gqa mqa mla"})


@dataclass
class BenchmarkOutput:
    """Where results go."""

    output_dir: str = field(default="benchmarks/results", metadata={"help": "where the JSON and the figure go"})


def data(argv: list[str]) -> None:
    """Prepare data: `data` runs all three stages, `data download|tokenizer|tokens` one of them."""
    from .data import prepare_corpus, prepare_tokenizer, prepare_tokens

    stages = ("download", "tokenizer", "tokens")
    chosen = stages
    if argv and not argv[0].startswith("-"):
        stage, *argv = argv
        if stage not in stages:
            raise UserError(f"data stage {stage} is unknown; choose {', '.join(stages)}, or none for all")
        chosen = (stage,)
    (given,) = parse([DataArguments], argv, f"data {chosen[0] if len(chosen) == 1 else ''}".strip(), data.__doc__)
    folder = Path(given["data_dir"])
    corpus, tokenizer, tokens = (folder / name for name in ("corpus", "tokenizer", "tokens"))
    if "download" in chosen:
        sample = given["sample_characters"] if given["streaming"] else None
        counts = prepare_corpus(corpus, given["corpus"], given["text_column"], sample)["splits"]
        sizes = ", ".join(f"{split} {c['documents']} documents / {c['words']:,} words" for split, c in counts.items())
        wrote(corpus, sizes, "python hftokenizer.py", len(chosen) == 1)
    if "tokenizer" in chosen:
        manifest = prepare_tokenizer(tokenizer, corpus, given["vocab_size"])
        wrote(tokenizer, f"{manifest['vocab_size']:,} entries", "python construct_dataset.py", len(chosen) == 1)
    if "tokens" in chosen:
        manifest = prepare_tokens(tokens, corpus, tokenizer, given["sequence_length"], given["shuffle_seed"])
        rows = ", ".join(f"{split} {counts['rows']:,}" for split, counts in manifest["splits"].items())
        following = "cd ..; python train_model.py" + (" --streaming" if "stream" in manifest else "")
        wrote(tokens, f"rows of {manifest['sequence_length']} tokens: {rows}", following)


def train(argv: list[str]) -> None:
    """Train decoders with different attention, one after another, on the packed tokens."""
    from transformers import TrainingArguments
    from transformers.utils import logging

    from .report import draw_curves, write_model_card
    from .training import PRESETS, RunArguments, train, trainer_defaults
    from .training.settings import preset_name

    classes = [RunArguments, TrainingArguments]
    first, _ = parse(classes, argv, "train", train.__doc__, trainer_defaults())
    preset = preset_name(first["preset"])
    if first["preset"] == "auto":
        print(f"No --preset given: taking {preset}; --preset reference or --preset demo chooses.")
    defaults = trainer_defaults() | PRESETS[preset]
    run_values, trainer_flags = parse(classes, argv, "train", train.__doc__, defaults)
    arguments = RunArguments(**run_values)
    logging.disable_progress_bar()  # one bar at a time: the run's own
    runs = Path(arguments.weights_dir) / arguments.run
    figures = Path(arguments.figures_dir) / arguments.run
    folders = train(arguments, trainer_flags, lambda folder: draw_curves(folder, figures))
    if int(os.environ.get("RANK", 0)) > 0:  # of several processes one speaks for all
        return
    draw_curves(runs, figures)
    for folder in folders:
        write_model_card(folder)
    wrote(", ".join(map(str, folders)), f"curves in {figures}", "python eval_model.py")


def evaluate(argv: list[str]) -> None:
    """Evaluate trained models on held-out text: perplexities, bits per byte, cache, size."""
    from .evaluation import evaluate_models, known_rows
    from .report import write_model_card

    models = []
    while argv and not argv[0].startswith("-"):
        models.append(argv.pop(0))
    (given,) = parse([EvaluationArguments], argv, "eval", evaluate.__doc__)
    given["models"] = models or given["models"]
    output_dir, tasks, limit = Path(given.pop("output_dir")), given.pop("tasks"), given.pop("limit")
    if tasks:
        return evaluate_by_harness(tasks, limit, given, output_dir)
    results = evaluate_models(**given, known=known_rows(output_dir))
    for folder in results.run_folders:
        write_model_card(folder)
    print(results.table())
    written = results.save(output_dir)
    wrote(", ".join(map(str, written)), f"{len(results.rows)} evaluations", "mla-experiments generate --model NAME")


def evaluate_by_harness(tasks: list[str], limit: int | None, given: dict, output_dir: Path) -> None:
    """Run tasks of lm-evaluation-harness and write `harness.json`."""
    from .benchmark.measure import table
    from .evaluation.harness import evaluate_tasks
    from .manifest import library_versions, write_json

    rows = evaluate_tasks(tasks, limit=limit, **given)
    print(table([row | {"value": f"{row['value']:,.4f}"} for row in rows]))
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "harness.json", {"versions": library_versions(), "limit": limit, "results": rows})
    wrote(output_dir / "harness.json", f"{len(rows)} values", "mla-experiments export RUN --to hf OUT")


def generate(argv: list[str]) -> None:
    """Continue a prompt with a trained model."""
    from .evaluation.generation import print_continuation

    if argv and not argv[0].startswith("-"):
        argv = ["--model", *argv]
    (given,) = parse([GenerationArguments], argv, "generate", generate.__doc__)
    print_continuation(**given)


def export(argv: list[str]) -> None:
    """Write a trained model as a stock checkpoint: `export RUN --to hf OUT`. Llama, or DeepSeek-V3 for MLA."""
    from .evaluation import find_models
    from .modeling.conversion import export_checkpoint
    from .report import write_model_card

    places = {"RUN": "folder of a trained model, or its name under WEIGHTS_DIR", "OUT": "folder to write"}
    given, where = parse([ExportArguments], argv, "export", export.__doc__, positional=places)
    if given["to"] != "hf":
        raise UserError(f"to={given['to']} is unknown; hf, a stock checkpoint of transformers, is what there is")
    (source,) = find_models([where["RUN"]], Path(given["weights_dir"]))
    stock = export_checkpoint(
        source, where["OUT"], given["overwrite"], lambda folder: write_model_card(folder, source, where["OUT"])
    )
    wrote(where["OUT"], f"{stock.architectures[0]}, with a model card", f"hf upload NAME {where['OUT']}")


def import_(argv: list[str]) -> None:
    """Make a local Llama or dense DeepSeek-V2/V3 checkpoint a model of ours: `import PATH OUT`."""
    from .modeling.conversion import import_checkpoint

    places = {"PATH": "folder of a Llama, DeepSeek-V2 or DeepSeek-V3 (dense) checkpoint", "OUT": "folder to write"}
    given, where = parse([ConversionArguments], argv, "import", import_.__doc__, positional=places)
    config = import_checkpoint(Path(where["PATH"]), Path(where["OUT"]), given["overwrite"])
    known = "" if (Path(where["OUT"]) / "tokenizer.json").is_file() else "; no tokenizer was there to bring along"
    wrote(where["OUT"], f"{config.attention}{known}", f"mla-experiments generate {where['OUT']} --prompt TEXT")


def study(argv: list[str]) -> int:
    """Run all that a study still lacks: `study experiments/NAME.yaml`. Stop it at any time and start it again."""
    from transformers.utils import logging

    from .study import read_study, run_study, shard_of

    logging.disable_progress_bar()  # one bar at a time: the run's own

    places = {"FILE": "YAML file of the study"}
    given, where = parse([StudyArguments], argv, "study", study.__doc__, positional=places)
    given |= {"root": Path(given.pop("studies_dir")), "shard": shard_of(given["shard"])}
    outcome = run_study(read_study(Path(where["FILE"])), **given)
    wrote(outcome.folder, f"{len(outcome.failures)} failed runs", f"mla-experiments report {outcome.folder}")
    if outcome.left:
        print(outcome.left)
    for failure in outcome.failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0


def report(argv: list[str]) -> None:
    """Write the report of a study, finished or not: `report studies/NAME`."""
    from .report.study import write_report

    (where,) = parse([], argv, "report", report.__doc__, positional={"STUDY": "folder of a study"})
    written = write_report(Path(where["STUDY"]))
    wrote(written[0], f"and {len(written) - 1} other files", "", False)


def compare(argv: list[str]) -> None:
    """Put studies and runs side by side: `compare studies/NAME weights/mha …`; refuses what does not compare."""
    from .report.comparison import compared

    places = []
    while argv and not argv[0].startswith("-"):
        places.append(argv.pop(0))
    (given,) = parse([CompareArguments], argv, "compare", compare.__doc__)
    if not places:
        raise UserError("compare needs folders of studies or runs; give some: mla-experiments compare A B")
    print(compared(places, Path(given["weights_dir"])))


def plan_(argv: list[str]) -> None:
    """Say what a model or a study would cost without running it: `plan deepseek-v2 --kv_lora_rank 256`."""
    from .benchmark.hardware import hardware_of
    from .benchmark.measure import table
    from .benchmark.plan import architecture_of, changed, facts, plan
    from .modeling.attention import ATTENTION
    from .study import read_study, study_plan

    known = {}  # option: the mechanisms that know it
    for name, mechanism in ATTENTION.items():
        for option in sorted(mechanism.option_names()):
            known.setdefault(option, []).append(name)
    what_if = make_dataclass(
        "WhatIf",
        [(option, int | None, field(default=None, metadata={"help": f"what if: an option of {', '.join(names)}"}))
         for option, names in known.items()],
    )  # fmt: skip
    argv = ["reference", *argv] if argv[:1] not in (["-h"], ["--help"]) and (not argv or argv[0][0] == "-") else argv
    places = {"MODEL": "a well-known name (by default: reference), a folder with config.json, or a study's YAML file"}
    given, what_if, where = parse([PlanArguments, what_if], argv, "plan", plan_.__doc__, positional=places)
    refuse_nonpositive(given)
    own = {name: given[name] for name in ("memory_gib", "gb_per_second", "tflop_per_second")}
    options = {name: value for name, value in what_if.items() if value is not None}
    if where["MODEL"].endswith((".yaml", ".yml")):
        if options or given["attention"]:
            raise UserError("--attention and its options are for models; a study states its own in its file")
        stated, hardware = read_study(Path(where["MODEL"])), hardware_of(given["hardware"], own)
        print(table(study_plan(stated, hardware, given["utilisation"])))
        return
    architecture = changed(architecture_of(where["MODEL"]), given["attention"], options)
    hardware = hardware_of(given["hardware"], own)
    print("\n".join(facts(architecture, hardware)) + "\n")
    print(table(plan(architecture, hardware, given["contexts"], given["batch_sizes"])))


def refuse_nonpositive(given: dict) -> None:
    """Refuse a number that is not positive, by its field."""
    for name, value in given.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and number <= 0:
                raise UserError(f"{name}={number} must be positive")


def bench(argv: list[str]) -> None:
    """Measure speed and memory beside transformers' own models: `bench WHAT`, `bench --help` lists what."""
    from .benchmark import MEASUREMENTS
    from .benchmark.measure import save, table
    from .report.figures import draw_rows

    modules = {name: importlib.import_module(f".benchmark.{name}", __package__) for name in MEASUREMENTS}
    if argv and argv[0] in ("-h", "--help"):
        print("usage: mla-experiments bench WHAT [--flag VALUE ...]\n\n" + bench.__doc__ + "\n")
        for name, module in modules.items():
            print(f"  {name:<12}{module.Arguments.__doc__}")
        print("\nmla-experiments bench WHAT --help lists the flags of each.")
        return
    if not argv or argv[0] not in modules:
        found = f"bench {argv[0]} is unknown" if argv else "bench needs to know what to measure"
        raise UserError(f"{found}; choose one of {', '.join(modules)}")
    kind, *argv = argv
    module = modules[kind]
    given, output = parse([module.Arguments, BenchmarkOutput], argv, f"bench {kind}", module.__doc__)
    refuse_nonpositive(given)
    rows = module.measure(module.Arguments(**given))
    if not rows:
        raise UserError(f"bench {kind} had nothing to measure with {given}; give at least one of each list")
    print(table(rows))
    written = [save(kind, {"arguments": given, "rows": rows}, Path(output["output_dir"]))]
    if module.FIGURE:
        written.append(draw_rows(rows, written[0].with_suffix(".png"), title=module.Arguments.__doc__, **module.FIGURE))
    wrote(", ".join(map(str, written)), "with the machine", "", False)


def kernels(argv: list[str]) -> None:
    """List the backends of MLA's decoding, the fastest first, and why each can or cannot be used here."""
    from .kernels import latent

    parse([], argv, "kernels", kernels.__doc__)
    for name, reason in latent.reasons().items():
        print(f"{name:<12}{'usable' if reason is None else 'not usable: ' + reason}")


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "data": data,
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "export": export,
    "import": import_,
    "plan": plan_,
    "study": study,
    "report": report,
    "compare": compare,
    "bench": bench,
    "kernels": kernels,
}


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command and return the exit code: 0, 2 for input that cannot work, 130 when stopped."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mla-experiments COMMAND [--config FILE.yaml] [--flag VALUE ...]\n\n" + (__doc__ or "") + "\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}")
        print("\nmla-experiments COMMAND --help lists the flags of each.")
        return 0
    keep_freed_memory()
    code, said = ended(argv)
    try:
        if said:
            print(said, file=sys.stderr if code == 2 else sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has gone, as `| head` does: nothing more is said to them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def ended(argv: list[str]) -> tuple[int, str]:
    """Run a sub-command to its end; return the exit code, and a sentence where it ended early."""
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"command {argv[0]} is unknown; choose one of {', '.join(COMMANDS)}")
        return COMMANDS[argv[0]](list(argv[1:])) or 0, ""
    except UserError as error:
        return 2, f"error: {error}"
    except ModuleNotFoundError as error:
        return 2, f"error: {error.name} is not installed; pip install {error.name}"
    except BrokenPipeError:
        return 141, ""  # as a program ends by SIGPIPE
    except OSError as error:
        what, reason = error.filename or "a file", error.strerror or reason_of(error)
        return 2, f"error: {what} cannot be read or written ({reason}); mend that; what was whole is kept"
    except Stopped as stopped:
        return 130, str(stopped)
    except KeyboardInterrupt:
        return 130, "\nStopped at once. A training run goes on from its last checkpoint with --resume."


def parse(
    classes: list[type],
    argv: list[str],
    command: str,
    description: str,
    defaults: dict | None = None,
    positional: dict[str, str] | None = None,
):
    """Return the flags of each dataclass as a dictionary, and one more of the positional arguments if there are any.

    Args:
        classes: dataclasses whose fields are the flags.
        argv: the command line after the sub-command; `--config FILE` in it is replaced by the file's flags.
        command: the sub-command, for the messages.
        description: what it does, for `--help`.
        defaults: in place of the fields' own.
        positional: arguments without a flag, all needed, and what they mean.

    Raises:
        UserError: unknown flag, or a value of the wrong type.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message):
            raise UserError(f"{message}; see mla-experiments {command} --help")

    parser = Parser(classes, prog=f"mla-experiments {command}", description=description, allow_abbrev=False)
    known = {action.dest for action in parser._actions}
    for name, meaning in (positional or {}).items():
        parser.add_argument(name, help=meaning)
    parser.set_defaults(**{name: value for name, value in (defaults or {}).items() if name in known})
    values = vars(parser.parse_args(with_config(argv, known)))
    named = [{f.name: values[f.name] for f in fields(cls) if f.init} for cls in classes]
    return [*named, {name: values[name] for name in positional}] if positional else named


def with_config(argv: list[str], known: set[str]) -> list[str]:
    """Put the flags of `--config FILE` where it stands; keys that belong to other sub-commands are left out."""
    if "--config" not in argv:
        return argv
    import yaml

    place = argv.index("--config")
    if place + 1 == len(argv):
        raise UserError("--config needs a file; give one, such as experiments/demo.yaml")
    path = Path(argv[place + 1])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config={path} cannot be read ({reason_of(error)}); give a YAML file of flags") from None
    if not isinstance(content, dict):
        raise UserError(f"config={path} is not a list of `flag: value` lines; see experiments/demo.yaml")
    flags = []
    for name, value in content.items():
        if name in known:
            flags += [f"--{name}", *as_strings(value)]
        elif name not in flags_of_all_commands():
            near = difflib.get_close_matches(name, flags_of_all_commands() | known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see mla-experiments COMMAND --help"
            raise UserError(f"config={path} has the unknown flag {name}{hint}")
    return [*flags, *argv[:place], *argv[place + 2 :]]


def as_strings(value) -> list[str]:
    """A YAML value as it would stand on the command line."""
    import json

    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]


def flags_of_all_commands() -> set[str]:
    """Return the names of the flags of every sub-command."""
    from transformers import TrainingArguments

    from .training import RunArguments

    classes = (
        DataArguments, EvaluationArguments, GenerationArguments, ExportArguments, RunArguments, TrainingArguments,
    )  # fmt: skip
    return {f.name for cls in classes for f in fields(cls) if f.init}


def wrote(what: Path | str, details: str, following: str, say_next: bool = True) -> None:
    """Say what was written and what to run next."""
    print(f"Wrote {what} ({details})." + (f"\nNext: {following}" if say_next else ""))


if __name__ == "__main__":
    sys.exit(main())
