"""The runs of a study in several processes on this machine."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..errors import Stopped
from ..threads import environment_with
from .executors import Executor


class Local(Executor):
    """In `count` processes, which share out the threads, and the GPUs if there are any."""

    def __init__(self, work: Callable, count: int):
        super().__init__(work, room=count)
        self.idle: list[Connection] = []
        self.processes: dict[Connection, tuple[BaseProcess, int]] = {}  # each with its place

    def start(self, task) -> None:
        """Give a task to an idle process, or to a new one."""
        connection = self.idle.pop() if self.idle else self._new_process()
        self.running[connection] = task
        with contextlib.suppress(OSError):  # it was lost while it was idle: `next_end` will find out
            connection.send((task, self.attempts[task]))

    def _new_process(self) -> Connection:
        place = min(set(range(self.width)) - {place for _, place in self.processes.values()})
        connection, its_end = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(its_end, self.work))
        with environment_with(environment_of(place, self.width)), deaf_to_ctrl_c():
            process.start()
        its_end.close()
        self.processes[connection] = process, place
        return connection

    def next_end(self) -> tuple:
        """Wait for any process to end its task, or to be lost."""
        connection: Any = wait(list(self.running))[0]
        task = self.running.pop(connection)
        try:
            result = connection.recv()
        except (EOFError, OSError):
            process, _ = self.processes.pop(connection)
            process.join()
            return task, None
        self.idle.append(connection)
        return task, result

    def stop(self) -> None:
        """Send SIGTERM, on which training saves a checkpoint, and wait; at a Ctrl-C meanwhile, no more."""
        processes = [process for process, _ in self.processes.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
            raise


def _serve(connection: Connection, work: Callable) -> None:
    """Do tasks as they come, until there is none any more or somebody asks to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its group's Ctrl-C reaches the parent too, which sends SIGTERM
    with contextlib.suppress(EOFError, ConnectionError, Stopped):
        while True:
            connection.send(work(*connection.recv()))


def environment_of(place: int, count: int) -> dict[str, str]:
    """Return the environment of one of `count` processes: its share of the threads, and a GPU if there are any."""
    values = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        values["CUDA_VISIBLE_DEVICES"] = visible[place % gpus]
    return values


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes that are started meanwhile not hear Ctrl-C from their very start; this one hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which would be started meanwhile, and unblocks Ctrl-C once it is
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
