"""One run of a study is done: trained and scored, in this process or in another."""

import os
import socket
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..allocator import keep_freed_memory
from ..data import load_tokenizer_of
from ..errors import InUse, Stopped, UserError, reason_of
from ..evaluation.perplexity import score_documents
from ..evaluation.recall import score_task
from ..evaluation.results import load_with_tokenizer
from ..evaluation.scores import write_answers, write_scores
from ..modeling import set_cache_dtype
from .trials import Task, Trial, Trials

PATIENCE = 120  # seconds until the lock of a lost process is free: a file server may take 90 to see that it is lost


@dataclass(frozen=True)
class Ended:
    """How a task ended: done in so many seconds, failed for a reason, or left to another process, which is at it."""

    seconds: float = 0.0
    failure: str = ""
    is_elsewhere: bool = False


def do(trials: Trials, task: Task, attempt: int) -> Ended:
    """Train and score a run that no other process has at hand.

    Args:
        trials: of the study.
        task: with its settings.
        attempt: from 1; later ones wait for the lock of the process that was lost.

    Raises:
        Stopped: somebody asked to stop; the next attempt goes on from there.
    """
    begun = time.monotonic()
    try:
        trial = trials.trial(task)
        with trial.run.lock(PATIENCE if attempt > 1 else 0):
            if not trial.is_done:  # another process may just have ended it
                train_and_score(trials, trial)
    except InUse:
        return Ended(is_elsewhere=True)
    except (UserError, RuntimeError, OSError, ValueError) as error:
        return Ended(failure=reason_of(error))
    return Ended(time.monotonic() - begun)


def do_apart(trials: Trials, task: Task, attempt: int) -> Ended:
    """Do a task in a process of its own, which says all that it has to say to a log."""
    keep_freed_memory()
    log = log_of(trials, task)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", buffering=1, encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        now, host, process = datetime.now().isoformat(" ", "seconds"), socket.gethostname(), os.getpid()
        print(f"{now}: attempt {attempt} on {host}, process {process}: {trials.trial(task).name}")
        try:
            return do(trials, task, attempt)
        except Stopped as stopped:
            print(stopped)
            raise
        except Exception as error:  # a mistake of ours, which must not take the other runs along
            traceback.print_exc()
            return Ended(failure=f"{type(error).__name__}: {error}; see {log}")


def log_of(trials: Trials, task: Task) -> Path:
    """Return where a process of its own speaks of a run."""
    return trials.root / trials.study.name / "logs" / f"{trials.trial(task).run.folder.name}.txt"


def train_and_score(trials: Trials, trial: Trial) -> None:
    """Train a run if it is not, and score every held-out document alone."""
    if not trial.run.is_finished:
        trial.run.check_same("delete its folder to train it again")
        variant = trial.matched.variant
        tokens, manifest = trials.loaded(variant)
        tokenizer = load_tokenizer_of(manifest, trials.data_of(trials.study.corpus_of(variant)) / "tokenizer")
        trial.run.train(tokens, tokenizer, lambda _: None)
    model, tokenizer = load_with_tokenizer(trial.run.folder)
    set_cache_dtype(model, trial.cache_dtype)
    if trial.run.task:
        answers = score_task(model, trial.run.task, trial.run.arguments.sequence_length)
        write_answers(trial.run.folder, answers, trial.cache_dtype)
        return
    scored = {
        split: (documents, score_documents(model, tokenizer, documents, description=f"scoring {split}"))
        for split, documents in trials.texts.items()
    }
    write_scores(trial.run.folder, scored, trial.cache_dtype)
