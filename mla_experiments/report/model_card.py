"""The model card of a run, `README.md` in the form of the hub: what it is, what it saw, how good it is, how to load."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoConfig, PreTrainedConfig

from ..evaluation.results import known_rows, with_headings
from ..markdown import escaped, table
from ..modeling import DecoderConfig
from ..modeling.attention import ATTENTION
from ..modeling.attention.hybrid import is_hybrid, names_in
from ..modeling.attention.plugins import how_to_get
from ..modeling.export import native_config
from ..run_files import RUN_FILE, read_run
from ..texts import write_text

METRICS = {
    "perplexity_per_token": "perplexity per token",
    "perplexity_per_word": "perplexity per word",
    "bits_per_byte": "bits per byte",
    "accuracy": "share of answers right",
}
LOADING = """```python
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {path}  # or its name on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
print(tokenizer.decode(model.generate(**tokenizer("The history of", return_tensors="pt"))[0]))
```"""


def write_model_card(folder: Path, run_folder: Path | None = None, shown_as: Path | str | None = None) -> Path:
    """Write `README.md` into the folder of a model; return its path.

    Args:
        folder: of the model.
        run_folder: of the run that made it, with `run.json` and perhaps `results.json`; by default the same.
        shown_as: path in the example of loading; by default that of the folder.
    """
    folder, run_folder = Path(folder), Path(run_folder or folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    run, rows = read_run(run_folder), known_rows(run_folder)
    imports = "import mla_experiments  # makes the model known to transformers\n"
    name = run.get("attention") or attention_of(AutoConfig.from_pretrained(run_folder, trust_remote_code=False))
    native = config.model_type == "mla_experiments"
    data = ModelCardData(
        model_name=run_folder.resolve().name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(("mla-experiments", name, *names_in(name)))),
        eval_results=[result for row in rows for result in eval_results(row)] or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# A decoder with {escaped(described(name))} ({escaped(name.upper())})",
        describe_model(config, native),
        describe_training(run, (folder / RUN_FILE).is_file()),
        describe_results(rows),
        "## Load it\n\n" + LOADING.format(path=json.dumps(str(shown_as or folder)), imports=imports if native else ""),
    ]
    path = folder / "README.md"
    write_text(path, "\n\n".join(part for part in parts if part))
    return path


def attention_of(config: PreTrainedConfig) -> str:
    """Return the mechanism of a model, ours or stock."""
    return config.attention if isinstance(config, DecoderConfig) else native_config(config).attention


def described(name: str) -> str:
    """Return what a mechanism, or those of a hybrid, is in words; its name where it is not here."""
    known = [ATTENTION[one].description if one in ATTENTION else one for one in dict.fromkeys(names_in(name))]
    return known[0] if len(known) == 1 else f"layers of {' and of '.join(known)}"


def eval_results(row: dict) -> list[EvalResult]:
    """Return one row of evaluation in the hub's form, a metric each."""
    return [
        EvalResult(
            task_type="text-generation", dataset_type=row["corpus"], dataset_name=row["corpus"],
            dataset_split=row["split"], metric_type=metric, metric_name=said, metric_value=row[metric],
        )
        for metric, said in METRICS.items()
        if row.get(metric) is not None
    ]  # fmt: skip


def describe_model(config: PreTrainedConfig, native: bool) -> str:
    """Say what the network is."""
    size = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads, vocabulary "
        f"{config.vocab_size:,}, context {config.max_position_embeddings:,} tokens"
    )
    if native:
        several = is_hybrid(config.attention)
        options = [
            f"{name}: " * several + ", ".join(f"{option} {value}" for option, value in own.items() if value is not None)
            for name, own in config.mechanisms.items()
        ]
        if config.layer_options:
            options.append(f"by layer: {', '.join(map(str, config.layer_options))}")
        beside = "".join(
            f" The mechanism{f' {name}' * several} is from outside mla-experiments: {escaped(how_to_get(source))}."
            for name, source in config.sources.items()
        )
        equations = "\n".join(f"    {ATTENTION[name].equation}" for name in config.mechanisms)
        return (
            f"{size}; {'; '.join(options)}. Positions: {config.positions}. A model of mla-experiments.{beside}\n\n"
            f"{equations}"
        )
    return f"{size}. A stock `{config.model_type}` of transformers, written by mla-experiments."


def describe_training(run: dict, has_record: bool) -> str:
    """Say what the model was trained on, and for how long; and where the rest is said, if the record stands beside."""
    identity = run.get("identity")
    if not identity:
        return ""
    tokens = identity["steps"] * identity["batch_size"] * identity["sequence_length"]
    return (
        f"## Training\n\n{tokens:,} tokens of {escaped(run['corpus'])} ({identity['steps']:,} steps of "
        f"{identity['batch_size']} sequences of {identity['sequence_length']:,}), learning rate "
        f"{identity['learning_rate']:g}, seed {identity['seed']}, on {run['device']}."
        + has_record
        * " `run.json` has every setting, the hashes of corpus and tokenizer, and the versions."
    )


def describe_results(rows: list[dict]) -> str:
    """Show the evaluations as a table."""
    shown = with_headings(rows, but={"model", "parameters", "training tokens/s"})
    return f"## Evaluation\n\n{table(shown, escaped)}" if rows else ""
