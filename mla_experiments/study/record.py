"""`ROOT/STUDY/study.json`: what is stated, matched, done and failed, and what is measured beside the runs."""

import json
from dataclasses import asdict

from ..benchmark.decode import decode_step
from ..benchmark.measure import interleaved, machine, spread
from ..benchmark.training import training_step
from ..evaluation.generation import continuation
from ..evaluation.results import load_with_tokenizer
from ..manifest import library_versions, locked, read_manifest, read_record, write_record
from ..modeling import DecoderConfig, DecoderForCausalLM, device, set_cache_dtype
from ..training.identity import sources_hash
from .matching import Matched, config_of
from .trials import Task, Trials

STUDY = "study.json"
DECODE_CONTEXTS = (1024, 8192)
PROMPT = "The history of"


def record(trials: Trials, failures: dict[str, str], beside: bool = False) -> None:
    """Write `study.json`, one process at a time, and take over what others wrote there.

    Args:
        trials: of the study; they learn which runs failed in other processes.
        failures: of the runs that this process has at hand, by folder; empty where it did not fail, or not yet.
        beside: measure too what is not measured yet.
    """
    folder = trials.root / trials.study.name
    with locked(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            old = read_record(folder / STUDY)
        except (OSError, ValueError):
            old = {}
        trials.failed = {name: why for name, why in (old.get("failed", {}) | failures).items() if why}
        new = content(trials)
        known = old if old and timed(old) == timed(new) else {}
        measured = {name: known.get(name, {}) for name in ("machine", "decode", "training", "samples")}
        if beside:
            measured |= measure(trials, measured)
        measured["machine"] = measured["machine"] or machine()
        write_record(folder / STUDY, new | measured)


def timed(recorded: dict) -> list:
    """Return of which models, steps and code the speeds in a record are: after a study was edited, of others."""
    of_model = ("name", "options", "intermediate_size")  # of which older records may lack one
    models = [[variant.get(name) for name in of_model] for variant in recorded["variants"]]
    stated = [recorded["stated"].get(name) for name in ("preset", "settings")]
    return json.loads(json.dumps([recorded.get("vocab_size"), recorded.get("code"), stated, models]))


def code_of(trials: Trials) -> dict:
    """Return by what code speeds are measured: versions, and the hash of the sources of each mechanism."""
    names = sorted({matched.variant.attention for matched in trials.variants})
    return {"versions": library_versions(), "sources": {name: sources_hash(name) for name in names}}


def content(trials: Trials) -> dict:
    """Return what is stated, matched, done and failed."""
    corpus = read_manifest(trials.data / "corpus", "")
    tasks = trials.tasks()
    decided = trials.decided(tasks).values()
    return {
        "name": trials.study.name,
        "stated": json.loads(json.dumps(asdict(trials.study), default=str)),
        "corpus": trials.study.data["corpus"] if "task" in corpus else corpus["corpus"],
        "corpus_hash": corpus["hash"],
        "vocab_size": trials.manifest["vocab_size"],
        "tokenizer_hash": trials.manifest["tokenizer_hash"],
        "texts": {} if "task" in corpus else trials.text_hashes,
        "code": code_of(trials),
        "variants": [
            asdict(trials.chosen(number)) | {"name": matched.variant.name, "variant": asdict(matched.variant)}
            for number, matched in enumerate(trials.variants)
        ],
        "same": trials.same,
        "runs": [row_of(trials, task) for task in decided],
        "failed": trials.failed,
        "complete": len(decided) == len(tasks) and all(trials.trial(task).is_done for task in decided),
    }


def row_of(trials: Trials, task: Task) -> dict:
    """Return a run as it is recorded, and of a trial of a part of the tokens how it came out."""
    trial = trials.trial(task)
    return {
        "variant": trial.variant, "seed": trial.seed, "settings": trial.settings, "is_tuning": trial.is_tuning,
        "folder": str(trial.run.folder.relative_to(trials.root)), "done": trial.is_done,
        "share": trial.share, **({"halved": halved} if (halved := trials.halved(task)) else {}),
    }  # fmt: skip


def measure(trials: Trials, known: dict) -> dict:
    """Return the speeds of all variants, unless they are known, and what a model of each says."""
    speeds, samples = {}, {}
    if set(known["decode"]) != {matched.variant.name for matched in trials.variants}:
        speeds = {"machine": machine(), "decode": decode_speeds(trials), "training": training_speeds(trials)}
    for number, matched in enumerate(trials.variants):
        best = trials.best(number)
        if best is None or trials.study.task_of(matched.variant):  # drawn rows are no prose
            continue
        if (trial := trials.trial(Task(number, trials.study.seeds[0], best))).is_done:
            model, tokenizer = load_with_tokenizer(trial.run.folder)
            set_cache_dtype(model, matched.variant.cache_dtype)
            length = min(48, model.config.max_position_embeddings // 2)
            samples[matched.variant.name] = continuation(model, tokenizer, PROMPT, length)
    return speeds | {"samples": known["samples"] | samples}


def training_speeds(trials: Trials) -> dict[str, dict[str, float]]:
    """Return tokens per second of a training step, by variant, taking turns: runs may have shared the machine."""
    steps, tokens = {}, {}
    for name, matched in variants(trials).items():
        own, flags = trials.study.arguments(matched.variant)
        shape = own["sequence_length"], min(own["batch_size"], flags["per_device_train_batch_size"])
        steps[name] = training_step(DecoderForCausalLM(config_for(trials, matched)).to(device()), *shape)
        tokens[name] = shape[0] * shape[1]
    seconds = interleaved(steps, rounds=9)
    return {name: speed_of(tokens[name], times) for name, times in seconds.items()}


def speed_of(tokens: int, seconds: list[float]) -> dict[str, float]:
    """Return the median, the slowest and the fastest turn in tokens per second."""
    turns = spread(seconds)
    return {name: 1e3 * tokens / turns[of] for name, of in (("median", "ms"), ("low", "to"), ("high", "from"))}


def decode_speeds(trials: Trials) -> dict[str, dict[str, dict[str, float]]]:
    """Return tokens per second of decoding at batch 1, by variant and context, taking turns; RoPE only.

    Weights are random: speed does not depend on them, and a trained context need not be so long.
    """
    speeds: dict[str, dict[str, dict[str, float]]] = {name: {} for name in variants(trials)}
    for context in DECODE_CONTEXTS:
        steps = {}
        for name, matched in variants(trials).items():
            config = config_for(trials, matched)
            if config.positions == "rope":
                config.max_position_embeddings = context + 8
                model, kept = DecoderForCausalLM(config).to(device()), matched.variant.cache_dtype
                steps[name] = decode_step(model, 1, context, cache_dtype=kept)[0]
        for name, seconds in interleaved(steps, rounds=9).items():
            speeds[name][str(context)] = speed_of(1, seconds)
    return speeds


def variants(trials: Trials) -> dict[str, Matched]:
    """Return the variants by name, each with the settings that came out best."""
    return {matched.variant.name: trials.chosen(number) for number, matched in enumerate(trials.variants)}


def config_for(trials: Trials, matched: Matched) -> DecoderConfig:
    """Return the config of a variant's models."""
    vocab_size = trials.manifest["vocab_size"]
    return config_of(trials.study, matched.variant, matched.options, vocab_size, matched.intermediate_size)
