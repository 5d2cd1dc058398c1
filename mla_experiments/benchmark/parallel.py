"""A training step shared out to processes on this machine's CPUs, beside one process with as many threads.

Data parallel: each process holds all weights, trains on its share of the same batch, and averages its gradients with
the others' (DistributedDataParallel over gloo, as `torchrun train_model.py` does). What the step is made of is timed
too: without the exchange of gradients, and the optimiser alone, which every process runs over all weights.
"""

import multiprocessing
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ..allocator import keep_freed_memory
from ..errors import UserError
from ..modeling import DecoderConfig, DecoderForCausalLM
from .measure import flag, interleaved, spread
from .training import SHAPE

FIGURE = None
ROUNDS, WARMUP = 3, 2  # of steps in a process


@dataclass
class Arguments:
    """Milliseconds of a training step in one process and in several, on the same batch."""

    attention: str = flag("mla", "the mechanism: mha gqa mqa mla")
    processes: int = flag(2, "processes of one thread each; one process has so many threads")
    sequence_length: int = flag(512, "tokens of a sequence")
    batch_size: int = flag(4, "sequences in a step, over all processes")
    rounds: int = flag(3, "turns of each contestant, in new processes, of three steps each")


def measure(given: Arguments) -> list[dict]:
    """Return a row for one process with one thread, one with several, and several with one each.

    Raises:
        UserError: a batch that does not divide among the processes.
    """
    if given.batch_size % given.processes:
        raise UserError(f"batch_size={given.batch_size} is no multiple of processes={given.processes}; change one")
    layouts = dict.fromkeys([(1, 1), (1, given.processes), (given.processes, 1)])
    seconds: dict[tuple[int, int], dict[str, list[float]]] = {layout: {} for layout in layouts}
    for _ in range(given.rounds):
        for layout, parts in seconds.items():
            for name, times in together(*layout, given).items():
                parts.setdefault(name, []).extend(times)
    alone = spread(seconds[1, 1]["step"])["ms"]
    return [row(*layout, parts, given, alone) for layout, parts in seconds.items()]


def row(processes: int, threads: int, parts: dict[str, list[float]], given: Arguments, alone: float) -> dict:
    """Return a line of the table: the whole step, how much quicker than one thread alone, and its parts."""
    step = spread(parts["step"])
    return {
        "attention": given.attention,
        "processes": processes,
        "threads each": threads,
        "sequences each": given.batch_size // processes,
        **step,
        "times one thread": alone / step["ms"],
        "ms without exchange": spread(parts["step without exchange"])["ms"],
        "ms of optimiser": spread(parts["optimiser"])["ms"],
    }


def together(processes: int, threads: int, given: Arguments) -> dict[str, list[float]]:
    """Return the seconds of a step and its parts, timed by the first of some new processes that train together."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(processes) as pool:
        asked = [(rank, processes, threads, given, Path(folder) / "rendezvous") for rank in range(processes)]
        return pool.starmap(train_together, asked, chunksize=1)[0]


def train_together(rank: int, processes: int, threads: int, given: Arguments, rendezvous: Path):
    """Take part in training as one of the processes, and return what was timed."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = DecoderConfig(**SHAPE, attention=given.attention, max_position_embeddings=given.sequence_length)
    model: torch.nn.Module = DecoderForCausalLM(config)
    apart = nullcontext
    if processes > 1:
        distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=processes)
        model = DistributedDataParallel(model)
        apart = model.no_sync
    tokens = torch.randint(config.vocab_size, (given.batch_size // processes, given.sequence_length))
    optimizer, optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), []

    def step():
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        begun = time.perf_counter()
        optimizer.step()
        optimiser.append(time.perf_counter() - begun)
        optimizer.zero_grad()

    def step_without_exchange():
        with apart():
            step()

    seconds = interleaved({"step": step, "step without exchange": step_without_exchange}, ROUNDS, WARMUP)
    return {**seconds, "optimiser": optimiser[2 * WARMUP :]}
