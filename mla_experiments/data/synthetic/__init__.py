"""Synthetic corpora: texts with known answers, drawn while training; `synthetic:NAME[:FIELD=VALUE,...]`."""

import difflib
from dataclasses import fields

from ...errors import UserError
from .copy import Copy
from .copy_ngram import CopyNgram
from .grammar import Grammar
from .hops import Hops
from .induction import Induction
from .mqar import Mqar
from .needle import Needle
from .sums import Sums
from .task import BLOCK, END, Rows, Task

PREFIX = "synthetic:"
TASKS = {task.name: task for task in (Mqar, Copy, CopyNgram, Induction, Needle, Hops, Sums, Grammar)}

__all__ = ["BLOCK", "END", "PREFIX", "TASKS", "Rows", "Task", "is_synthetic", "task_named", "task_of"]


def is_synthetic(corpus: str) -> bool:
    """Return whether the name of a corpus is that of a synthetic one."""
    return corpus.startswith(PREFIX)


def task_of(corpus: str) -> Task:
    """Return the task of a synthetic corpus.

    Args:
        corpus: "synthetic:NAME" or "synthetic:NAME:FIELD=VALUE,FIELD=VALUE".

    Raises:
        UserError: there is no such task or field, or the fields do not fit.
    """
    name, _, stated = corpus.removeprefix(PREFIX).partition(":")
    values = {}
    for part in filter(None, stated.split(",")):
        field, _, value = part.partition("=")
        if field in values:
            raise UserError(f"corpus={corpus} gives {field} twice; once is enough")
        values[field] = number_of(field, value, corpus)
    return task_named(name, values)


def task_named(name: str, values: dict) -> Task:
    """Return a task by its name, with some of its fields.

    Raises:
        UserError: see `task_of`.
    """
    if name not in TASKS:
        raise UserError(f"corpus={PREFIX}{name} is unknown{near(name, TASKS)}; there are {', '.join(TASKS)}")
    known = [field.name for field in fields(TASKS[name])]
    for field in values:
        if field not in known:
            raise UserError(f"{name} has no field {field}{near(field, known)}; it has {', '.join(known)}")
    return TASKS[name](**values)


def number_of(field: str, value: str, corpus: str) -> int | float:
    """Return what a field says as a number."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    raise UserError(f"corpus={corpus}: {field}={value} must be a number, such as {field}=8")


def near(name: str, known) -> str:
    """Return a guess at what was meant, as part of a sentence."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
