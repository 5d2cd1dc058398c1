"""The bridge to EleutherAI's lm-evaluation-harness: its tasks, and our held-out documents as one of them.

The harness sees an ordinary transformers model; nothing here scores anything. That it gives our own perplexities on
the same documents is a test, and so says what they mean.
"""

import logging
from pathlib import Path

import yaml
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ..errors import UserError, reason_of
from .results import find_models, held_out_texts, load_with_tokenizer, shown_name

DOCUMENTS = "documents"  # our held-out documents, as a task
PLAIN = {"bootstrap_iters": 0, "log_samples": False}  # values alone


def evaluate_tasks(
    tasks: list[str],
    models: list[str],
    corpus: str | None,
    text_column: str,
    data_dir: str,
    weights_dir: str,
    limit: int | None = None,
) -> list[dict]:
    """Return a row per model, task and metric.

    Args:
        tasks: names of the harness's own tasks, YAML files of tasks, or `documents`.
        limit: documents of each task; None for all.
        models: these and the others are those of `evaluate_models`; `corpus` is that of the task `documents`.

    Raises:
        UserError: an unknown task, or one that cannot be run: its data cannot be had, its file does not fit them.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} must be at least 1; leave it out for all documents")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager, described = known_tasks([task for task in tasks if task != DOCUMENTS])
    if DOCUMENTS in tasks:
        _, splits = held_out_texts(corpus, text_column, Path(data_dir))
        described.append(documents_task(next(reversed(splits.values()))))
    rows = []
    for folder in find_models(models, Path(weights_dir)):
        model = harness_model(folder)
        try:
            found = simple_evaluate(model, tasks=list(described), task_manager=manager, limit=limit, **PLAIN)
        except UserError:
            raise
        except Exception as error:  # a task is a file with code and templates in it
            raise UserError(
                f"tasks={' '.join(tasks)} cannot be run ({reason_of(error)}); see that their data can be had and fits"
            ) from None
        name = shown_name(folder, Path(weights_dir))
        rows += [{"model": name, **row} for row in values_of(found["results"])]
    return rows


def known_tasks(tasks: list[str]) -> tuple[TaskManager, list]:
    """Return what loads the harness's tasks and those in YAML files, and the names of those asked for.

    Raises:
        UserError: one that there is not.
    """
    names = {task: name_in(Path(task)) if task.endswith((".yaml", ".yml")) else task for task in tasks}
    manager = TaskManager(
        include_path=[str(Path(task).resolve().parent) for task, name in names.items() if task != name] or None,
        include_defaults=bool(tasks),  # thousands of files to read
    )
    if unknown := [name for name in names.values() if name not in manager.all_tasks]:
        raise UserError(f"tasks={unknown[0]} is unknown to lm-evaluation-harness; `lm-eval ls tasks` lists what it has")
    return manager, list(names.values())


def harness_model(folder: Path) -> HFLM:
    """Return the model in a folder as the harness takes it."""
    model, tokenizer = load_with_tokenizer(folder)
    # its cache of logits takes windows of one text that repeats itself for each other
    return HFLM(model, backend="causal", tokenizer=tokenizer, batch_size=8, logits_cache=False)


def values_of(results: dict[str, dict]) -> list[dict]:
    """Return a row per task and metric, without what the harness says beside them."""
    return [
        {"task": task, "metric": name.split(",")[0], "value": value}
        for task, metrics in results.items()
        for name, value in metrics.items()
        if isinstance(value, int | float) and "stderr" not in name and "," in name
    ]


class NameLoader(yaml.SafeLoader):
    """Reads the YAML of a task as far as its name: what the harness's own tags call is not called."""


NameLoader.add_multi_constructor("!", lambda *_: None)


def name_in(path: Path) -> str:
    """Return the name that the YAML file of a task, or of a group of them, gives it."""
    if not path.is_file():
        raise UserError(f"tasks={path} is not there; give a YAML file of a task, a name, or {DOCUMENTS}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), NameLoader)
        return content["group"] if "group" in content else content["task"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(f"tasks={path} names no task ({reason_of(error)}); give the YAML file of one") from None


def documents_task(texts: list[str]) -> dict:
    """Return documents as a task of rolling log-likelihood, with words counted as white space divides them.

    Raises:
        UserError: the texts hold no word.
    """
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise UserError("corpus holds no text to evaluate on; give one that does")

    def counted(document: dict, results: list) -> dict:
        (log_likelihood,), text = results, document["text"]
        words, num_bytes = len(text.split()), len(text.encode())
        return {
            "word_perplexity": (log_likelihood, words),
            "byte_perplexity": (log_likelihood, num_bytes),
            "bits_per_byte": (log_likelihood, num_bytes),
        }

    return {
        "task": DOCUMENTS,
        "custom_dataset": lambda **_: {"test": Dataset.from_dict({"text": kept})},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": lambda document: document["text"],  # a template would drop the last line's end
        "process_results": counted,
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }
