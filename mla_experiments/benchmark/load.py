"""Training and decoding beside processes that keep the cores busy, by threads and by how threads wait for each other.

Threads that share out a step wait for the last of them at every part of it. OpenMP has them spin meanwhile, which keeps
a core from the very thread that they wait for where another process has taken its turn. `GOMP_SPINCOUNT` says how often
they spin before they sleep, `OMP_WAIT_POLICY=passive` that they sleep at once; both are read when torch is loaded, so
that each contestant is a process of its own. It starts the busy processes itself, and trains a model of the demo's
size, and decodes with one of the reference's at a context of 512, beside each number of them in turn.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..allocator import keep_freed_memory
from ..errors import UserError
from ..modeling import DecoderConfig, DecoderForCausalLM
from ..threads import WAITING, environment_with
from .decode import decode_step
from .measure import flag, in_fresh_process
from .training import SHAPE, training_step

FIGURE = None
DEMO: dict[str, Any] = {"vocab_size": 10_000, "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4}
SEQUENCES, LENGTH, CONTEXT = 4, 256, 512
SPINNING = "system's"  # what OpenMP does untold


@dataclass
class Arguments:
    """Tokens per second of training and decoding beside busy processes, by threads and by how they wait."""

    attention: str = flag("mla", "the mechanism: mha gqa mqa mla")
    threads: list[int] = flag([1, 2], "threads of the process")
    waits: list[str] = flag(
        [SPINNING, "passive", "1000", "10000"],
        f"how threads wait: {SPINNING}, passive, or a number of spins before they sleep",
    )
    busy: list[int] = flag([1, 4], "busy processes at a time")
    niceness: list[int] = flag([10, 0], "of the busy processes", above=-1)
    seconds: int = flag(4, "of each measurement")
    rounds: int = flag(3, "processes of each contestant, in turns")


def measure(given: Arguments) -> list[dict]:
    """Return a row for training and one for decoding of each contestant; of one thread there is nothing to wait for.

    Raises:
        UserError: a way to wait that there is not.
    """
    environments = {wait: environment_of(wait) for wait in given.waits}
    ways = [(threads, wait) for threads in given.threads for wait in given.waits if threads > 1 or wait == SPINNING]
    loads = [(0, 0), *((count, nice) for nice in given.niceness for count in given.busy)]
    speeds: dict[tuple, list[float]] = {}
    for _ in range(given.rounds):
        for threads, wait in ways:
            with environment_with(environments[wait]):
                found = in_fresh_process(speeds_beside, given.attention, threads, loads, given.seconds)
            for (task, load), speed in found.items():
                speeds.setdefault((task, threads, wait, load), []).append(speed)
    return [row(task, *way, loads, speeds) for task in ("training", "decoding") for way in ways]


def environment_of(wait: str) -> dict[str, str | None]:
    """Return the environment in which OpenMP's threads wait so.

    Raises:
        UserError: there is no such way.
    """
    values: dict[str, str | None] = dict.fromkeys(WAITING)
    if wait == "passive":
        values["OMP_WAIT_POLICY"] = wait
    elif wait.isdigit():
        values["GOMP_SPINCOUNT"] = wait
    elif wait != SPINNING:
        raise UserError(f"waits={wait} is unknown; choose {SPINNING}, passive, or a number of spins")
    return values


def row(task: str, threads: int, wait: str, loads: list[tuple[int, int]], speeds: dict[tuple, list[float]]) -> dict:
    """Return a line of the table: tokens a second alone, and what share of them is kept beside each load."""
    alone, *others = (statistics.median(speeds[task, threads, wait, load]) for load in loads)
    names = [f"% beside {count} of nice {nice}" for count, nice in loads[1:]]
    kept = {name: 100 * speed / alone for name, speed in zip(names, others, strict=True)}
    return {"task": task, "threads": threads, "wait": wait if threads > 1 else "", "tokens/s alone": alone, **kept}


def speeds_beside(attention: str, threads: int, loads: list[tuple[int, int]], seconds: float) -> dict[tuple, float]:
    """Return tokens a second by task and load: so many busy processes of such a niceness."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    small = DecoderForCausalLM(DecoderConfig(**DEMO, attention=attention, max_position_embeddings=LENGTH))
    large = DecoderForCausalLM(DecoderConfig(**SHAPE, attention=attention, max_position_embeddings=CONTEXT + 8))
    tasks = {
        "training": (training_step(small, LENGTH, SEQUENCES), SEQUENCES * LENGTH),
        "decoding": (decode_step(large, 1, CONTEXT)[0], 1),
    }
    found = {}
    for load in loads:
        with busy_processes(*load):
            for name, (step, tokens) in tasks.items():
                found[name, load] = tokens * steps_per_second(step, seconds)
    return found


def steps_per_second(step: Callable, seconds: float) -> float:
    """Return how many steps are done in a second, after some to warm up."""
    for _ in range(2):
        step()
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        step()
        count += 1
    return count / passed


@contextmanager
def busy_processes(count: int, niceness: int) -> Iterator[list[subprocess.Popen]]:
    """Keep cores busy meanwhile."""
    code = f"import os; os.nice({niceness})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
