"""Fair timing: contestants take turns, medians are compared, and the machine is written down."""

import datetime
import itertools
import multiprocessing
import os
import platform
import re
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from copy import copy
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..manifest import library_versions, write_json

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


def flag(default: Any, said: str, above: int = 0) -> Any:
    """Return a field of `Arguments`: its default, of which lists are copied, what `--help` says, and its range."""
    return field(default_factory=lambda: copy(default), metadata={"help": said, "above": above})


def interleaved(tasks: Mapping[Name, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[Name, list[float]]:
    """Time tasks in turns, so that a slow minute of the machine falls on all alike.

    Args:
        tasks: what to run, by name.
        rounds: timed turns of each.
        warmup: turns before, not timed.

    Returns:
        Seconds of every timed turn, by name.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in tasks}
    for turn in range(warmup + rounds):
        for name, task in tasks.items():
            begun = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


REPEATS, LONG = 20, 0.01  # of a task in a graph, beside which launching it is nothing; fewer where one takes long (s)


def interleaved_on_the_card(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time what a GPU needs for tasks of a few launches, without what Python and launching them takes.

    Each is recorded as a CUDA graph of many repeats; one that cannot be recorded is timed as it is called. Elsewhere
    than on a GPU this is `interleaved`.
    """
    if not torch.cuda.is_available():
        return interleaved(tasks, rounds)
    recorded = {name: _recorded(task) for name, task in tasks.items()}
    seconds = interleaved({name: task for name, (task, _) in recorded.items()}, rounds)
    return {name: [one / recorded[name][1] for one in times] for name, times in seconds.items()}


def _recorded(task: Callable[[], object]) -> tuple[Callable[[], object], int]:
    """Return how to run a task, and how often it then runs."""
    (once,) = interleaved({"task": task}, rounds=1)["task"]
    repeats = max(1, min(REPEATS, round(LONG / once)))
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                task()
    except RuntimeError:
        torch.cuda.synchronize()
        return task, 1
    return graph.replay, repeats


def rates(seconds: dict[str, list[float]], units: float) -> dict[str, dict[str, float]]:
    """Return units per second: the median, the slowest and the fastest turn."""
    return {
        name: {"median": units / statistics.median(times), "low": units / max(times), "high": units / min(times)}
        for name, times in seconds.items()
    }


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a function gives in a Python process of its own, with the defaults that a process starts with."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def ceilings(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Measure what a device reaches at best: GFLOP/s of matrix products, and GB/s read (on a GPU or copied: twice)."""
    width = 2048 if device == "cpu" else 8192
    left, right = torch.randn(2, width, width, device=device, dtype=dtype)
    buffer = torch.randn(1 << 28, device=device, dtype=dtype)  # at least half a GiB: no cache holds it
    moved = buffer.nbytes
    tasks: dict[str, Callable[[], object]] = {
        "matmul": lambda: left @ right, "sum": buffer.sum, "product": lambda: buffer.dot(buffer)
    }  # fmt: skip
    if device != "cpu":
        other = torch.empty_like(buffer)
        tasks["copy"] = lambda: other.copy_(buffer)
    seconds = {name: min(times) for name, times in interleaved(tasks, rounds=5).items()}
    fastest = max(moved * (2 if name == "copy" else 1) / seconds[name] for name in tasks if name != "matmul")
    return {"GFLOP/s": 2 * width**3 / seconds["matmul"] / 1e9, "GB/s": fastest / 1e9}


def roofline(seconds: float, flops: float, num_bytes: float, ceiling: dict[str, float]) -> dict[str, float]:
    """Return the shares of the machine's rates that some work reached; the larger one says what binds it.

    Args:
        seconds: that it took.
        flops: floating-point operations that it needs.
        num_bytes: that it must read at least once.
        ceiling: from `ceilings`.
    """
    return {
        "% of matmul": 100 * flops / seconds / 1e9 / ceiling["GFLOP/s"],
        "% of bandwidth": 100 * num_bytes / seconds / 1e9 / ceiling["GB/s"],
    }


def flops_of(task: Callable[[], object]) -> int:
    """Return the floating-point operations that a task really does, by torch's counter.

    The counter knows the fused attention of GPUs for as many key heads as query heads alone, and half of whose scores
    are masked it counts whole; that of CPUs it leaves out silently.
    """
    operators = torch.ops.aten
    fused = {
        operators._scaled_dot_product_flash_attention_for_cpu: _fused_attention_flops,
        operators._scaled_dot_product_flash_attention: _fused_attention_flops,
        operators._scaled_dot_product_efficient_attention: _biased_attention_flops,
        operators._scaled_dot_product_cudnn_attention: _biased_attention_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        task()
    return counter.get_total_flops()


def _fused_attention_flops(query, key, value, dropout=0.0, is_causal=False, *_, **__):
    """Two products over all scores, of shapes `[B, H, T, D]`; half of those in a causal mask are never made."""
    heads = query[1]  # each group of them reads one key
    return sdpa_flop_count(query, (key[0], heads, *key[2:]), (value[0], heads, *value[2:])) // (2 if is_causal else 1)


def _biased_attention_flops(query, key, value, bias, log_sums, dropout=0.0, is_causal=False, *_, **__):
    return _fused_attention_flops(query, key, value, dropout, is_causal)


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median, the fastest and the slowest turn in milliseconds."""
    return {"ms": 1e3 * statistics.median(seconds), "from": 1e3 * min(seconds), "to": 1e3 * max(seconds)}


def machine() -> dict:
    """Describe what the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file() and (match := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = match[1]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": device,
        "date": datetime.date.today().isoformat(),
        "versions": library_versions(),
    }


def save(name: str, content: dict, folder: Path) -> Path:
    """Write a result as JSON, named by what was measured, date and hardware; an earlier one by that name is kept."""
    facts = machine()
    hardware = re.sub(r"[^a-z0-9]+", "-", (facts["gpu"] or f"cpu-{facts['cores']}-cores").lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{facts['date']}-{hardware}-{name}"
    names = (f"{stem}{f'-{number}' if number > 1 else ''}.json" for number in itertools.count(1))
    path = next(path for path in map(folder.joinpath, names) if not path.exists())
    write_json(path, {"measured": name, "machine": facts, **content})
    return path


def memory_of(process: int | str, kind: str) -> int:
    """Return the bytes that `/proc/PROCESS/status` names; 0 where it does not (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(kind)), 0)


class PeakMemory:
    """Samples the anonymous memory of this process while the block runs; `peak` is in bytes (Linux)."""

    def __enter__(self):
        self.peak, self.done = self.now(), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        """Sample until the block ends."""
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self.now())

    @staticmethod
    def now(process: int | str = "self") -> int:
        """Return the bytes of anonymous memory that a process, by default this one, holds now."""
        return memory_of(process, "RssAnon")

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()
