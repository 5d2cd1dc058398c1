"""The bridge to EleutherAI's lm-evaluation-harness: its tasks, and our held-out documents as one of them.

The harness sees an ordinary transformers model; nothing here scores anything. That it gives our own perplexities on
the same documents is a test, and so says what they mean.
"""

import re
from pathlib import Path

from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ..data import load_tokenizer
from ..errors import UserError
from ..modeling import load_model
from .results import find_models, held_out_texts, shown_name

DOCUMENTS = "documents"  # our held-out documents, as a task


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
        UserError: an unknown task, or one whose data cannot be had.
    """
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise UserError(f"tasks={missing[0]} is not there; give a YAML file of a task, a name, or {DOCUMENTS}")
    manager = TaskManager(include_path=[str(path.resolve().parent) for path in files] or None)
    described = [describe(task, manager, corpus, text_column, data_dir) for task in tasks]
    rows = []
    for folder in find_models(models, Path(weights_dir)):
        model = HFLM(pretrained=load_model(folder), tokenizer=load_tokenizer(folder), batch_size=8)
        try:
            found = simple_evaluate(
                model, tasks=list(described), task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False
            )
        except (ConnectionError, FileNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0][:160]
            raise UserError(f"tasks={' '.join(tasks)} need data that cannot be had ({reason}); go online") from None
        for task, metrics in found["results"].items():
            for name, value in metrics.items():
                if isinstance(value, int | float) and "stderr" not in name and "," in name:
                    row = {"model": shown_name(folder, Path(weights_dir)), "task": task}
                    rows.append(row | {"metric": name.split(",")[0], "value": value})
    return rows


def describe(task: str, manager: TaskManager, corpus: str | None, text_column: str, data_dir: str) -> str | dict:
    """Return a task as the harness takes it: a name that it knows, or a description."""
    if task == DOCUMENTS:
        _, splits = held_out_texts(corpus, text_column, Path(data_dir))
        return documents_task(next(reversed(splits.values())))
    if task.endswith((".yaml", ".yml")):
        stated = re.search(r"^task:\s*(\S+)", Path(task).read_text(encoding="utf-8"), re.MULTILINE)
        task = stated[1] if stated else task
    if task not in manager.all_tasks:
        raise UserError(f"tasks={task} is unknown to lm-evaluation-harness; `lm-eval ls tasks` lists what it has")
    return task


def documents_task(texts: list[str]) -> dict:
    """Return documents as a task of rolling log-likelihood, with words counted as white space divides them."""
    kept = [text for text in texts if text.strip()]

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
