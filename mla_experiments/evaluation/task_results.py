"""Evaluate trained models on synthetic tasks: a row per model and condition, and the same files as of text."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.corpora import is_prepared
from ..data.synthetic import Task, is_synthetic, task_of
from ..errors import UserError
from ..manifest import library_versions, read_manifest
from ..modeling import DecoderForCausalLM, device_name
from ..run_files import RUN_FILE, read_run
from .recall import probe, score_task
from .results import (
    Results,
    cache_bytes_per_token,
    find_models,
    load_with_tokenizer,
    record_in_run,
    shown_name,
    weights_hash,
)
from .scores import ANSWERS, SplitScores, write_answers


def task_asked_for(corpus: str | None, data_dir: Path) -> Task | None:
    """Return the synthetic task to evaluate on: the one named, or the one that was prepared; None where it is text."""
    if corpus is not None and is_synthetic(corpus):
        return task_of(corpus)
    folder = data_dir / "corpus"
    if not (corpus is None or is_prepared(corpus, folder)):
        return None
    try:
        manifest = read_manifest(folder, "")
    except UserError:  # none: evaluation of text says so, after what else is missing
        return None
    return task_of(manifest["corpus"]) if "task" in manifest else None


def evaluate_on_task(models: list[str], task: Task, weights_dir: str) -> Results:
    """Evaluate models on a task, each on rows as long as it was trained on, and under the task's conditions.

    Args:
        models: folders, or names under `weights_dir`; empty for every model in it.
        task: which.
        weights_dir: holds the trained models.

    Raises:
        UserError: no models, or one of another vocabulary.
    """
    rows, run_folders = [], []
    for folder in tqdm(find_models(models, Path(weights_dir)), "evaluating models", unit=" models"):
        model, _ = load_with_tokenizer(folder)
        name, run = shown_name(folder, Path(weights_dir)), read_run(folder)
        check_vocabulary(name, model, run, task)
        length = run.get("identity", {}).get("sequence_length", model.config.max_position_embeddings)
        task.check_length(length)
        scored = score_task(model, task, length, name)
        facts = {"model": name, "corpus": task.corpus, **facts_of(folder, model, run)}
        own = [facts | row_of(task, condition, part) for condition, part in scored.items()]
        if (folder / RUN_FILE).is_file():
            record_in_run(folder, own)
            if run["corpus"] == task.corpus:
                write_answers(folder, scored)
            run_folders.append(folder)
        rows += own
    return Results(rows, {"corpus": task.corpus, "device": device_name(), "versions": library_versions()}, run_folders)


def probe_models(models: list[str], names: list[str], weights_dir: str) -> list[dict]:
    """Ask models of text what synthetic tasks ask, in words of their own; return a row per model and condition.

    Args:
        models: folders, or names under `weights_dir`; empty for every model in it.
        names: of tasks.
        weights_dir: holds the trained models.

    Raises:
        UserError: see `recall.probe`.
    """
    rows = []
    for folder in find_models(models, Path(weights_dir)):
        name = shown_name(folder, Path(weights_dir))
        for task, condition, part in probe(*load_with_tokenizer(folder), names):
            rows.append({"model": name, "corpus": task.corpus, **row_of(task, condition, part)})
    return rows


def check_vocabulary(name: str, model: DecoderForCausalLM, run: dict, task: Task) -> None:
    """Refuse a model that was not trained on symbols of this task.

    Raises:
        UserError: see there.
    """
    trained_on = run.get("corpus", "something else")
    same = is_synthetic(trained_on) and task_of(trained_on).name == task.name
    if not same or model.config.vocab_size != task.num_symbols:
        raise UserError(
            f"{name} was trained on {trained_on}, whose vocabulary is not that of {task.corpus}; a model of text is "
            f"asked with --tasks {task.name}, in words of its own"
        )


def facts_of(folder: Path, model: DecoderForCausalLM, run: dict) -> dict:
    """Return what is the same in all rows of a model."""
    return {
        "protocol": ANSWERS,
        "attention": model.config.attention,
        "parameters": model.num_parameters(),
        "cache_bytes_per_token": cache_bytes_per_token(model),
        "train_tokens_per_second": run.get("train_tokens_per_second"),
        "trained_on": run.get("corpus"),
        "weights_sha256": weights_hash(folder),
    }


def row_of(task: Task, condition: str, scores: SplitScores) -> dict:
    """Return what came out under a condition."""
    answers = int(scores.tokens.sum())
    asked = scores.tokens > 0
    return {
        "split": condition,
        "accuracy": 1 - int(scores.wrong_answers.sum()) / answers,
        "rows_right": float(np.mean(scores.wrong_answers[asked] == 0)),
        "chance": task.chance,
        "nats_above_entropy": None if scores.excess is None else float(scores.excess.sum()) / answers,
        "answers": answers,
        "text_sha256": scores.text_sha256,
    }
