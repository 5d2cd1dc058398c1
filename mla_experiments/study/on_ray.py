"""The runs of a study as tasks of Ray, on this machine or a cluster whose machines all see the folder of studies."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from ..errors import Stopped, UserError, reason_of
from .executors import Executor

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

CONNECTING = 10  # seconds for a cluster to answer


class OnRay(Executor):
    """As Ray tasks, each with a GPU where the cluster has any and else with a CPU.

    Ray holds the queue, but what is lost comes back here: attempts are counted in one place.

    Args:
        work: as for others; the cluster's Python must know this package.
        address: HOST:PORT; None is the cluster that this machine is part of, or one of this machine alone.

    Raises:
        UserError: no cluster answers there.
    """

    def __init__(self, work: Callable, address: str | None):
        super().__init__(work, room=float("inf"))
        try:
            check_answer(address)
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"address={address} is no Ray cluster ({reason_of(error)}); see `ray status` on its head"
            ) from None
        self.kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        resources: dict[str, Any] = {"num_gpus": 1} if self.kind == "GPU" else {"num_cpus": 1}
        self.remote = ray.remote(max_retries=0, **resources)(_work_or_stop)

    @property
    def width(self) -> int:
        """How many tasks run at a time."""
        return max(1, int(ray.cluster_resources().get(self.kind, 1)))

    def start(self, task) -> None:
        """Hand a task to Ray."""
        self.running[self.remote.remote(self.work, task, self.attempts[task])] = task

    def next_end(self) -> tuple:
        """Wait for any task to end, or to be lost with its process or machine."""
        (done,), _ = ray.wait(list(self.running))
        task = self.running.pop(done)
        try:
            return task, ray.get(done)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            return task, None

    def stop(self) -> None:
        """Cancel the tasks, which is Ctrl-C to those under way, wait for them, and leave the cluster."""
        for handle in self.running:
            ray.cancel(handle)
        if self.running:
            ray.wait(list(self.running), num_returns=len(self.running))
        ray.shutdown()


def check_answer(address: str | None) -> None:
    """Raise an OSError where nothing answers at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), CONNECTING).close()


def _work_or_stop(work: Callable, task, attempt: int):
    """Return None, as for a lost process, where the task was asked to stop.

    Ray asks by Ctrl-C, to which a cluster that was started in the background would be deaf.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(Stopped, KeyboardInterrupt):
        return work(task, attempt)
