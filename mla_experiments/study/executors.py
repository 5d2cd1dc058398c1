"""Where the runs of a study take place: in this process, in several (`local.py`), or on a cluster (`on_ray.py`).

An executor has `work(task, attempt)` done for the tasks that are submitted to it, and yields each as it ends; more may
be submitted meanwhile. A task whose process is lost is done again. That no run is trained twice is not the executor's
business but that of the run's lock, which holds between machines too.
"""

import contextlib
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from ..errors import Stopped, UserError
from ..stopping import say_stopping

ATTEMPTS = 3  # of a task whose process is lost; a run that fails is not tried again


class Executor(ABC):
    """What all executors do alike.

    Args:
        work: gives back anything but None.
        room: how many tasks are handed out at a time.
    """

    def __init__(self, work: Callable, room: float):
        self.work, self.room = work, room
        self.waiting: deque = deque()
        self.running: dict = {}
        self.attempts: Counter = Counter()

    def submit(self, tasks: Iterable) -> None:
        """Take tasks in, to be done in this order."""
        self.waiting.extend(tasks)

    def __iter__(self) -> Iterator[tuple]:
        """Yield tasks as they end, each with what `work` gave back, or None where its process was lost every time."""
        while self.waiting or self.running:
            while self.waiting and len(self.running) < self.room:
                task = self.waiting.popleft()
                self.attempts[task] += 1
                self.start(task)
            task, result = self.next_end()
            if result is None and self.attempts[task] < ATTEMPTS:
                self.waiting.appendleft(task)
            else:
                yield task, result

    @property
    def width(self) -> int:
        """How many tasks run at a time."""
        return int(self.room)

    @abstractmethod
    def start(self, task) -> None:
        """Hand a task out, and note it in `running`."""

    @abstractmethod
    def next_end(self) -> tuple:
        """Return the next task that ends and its result; None where its process was lost."""

    @abstractmethod
    def stop(self) -> None:
        """Have the tasks under way save what they have, and wait for them to end."""


class Serial(Executor):
    """One after another, in this process."""

    def __init__(self, work: Callable):
        super().__init__(work, room=1)

    def start(self, task) -> None:
        """Note it."""
        self.running[task] = task

    def next_end(self) -> tuple:
        """Do it."""
        _, task = self.running.popitem()
        return task, self.work(task, self.attempts[task])

    def stop(self) -> None:
        """A signal has reached the work itself."""


@contextlib.contextmanager
def executor_of(name: str, address: str | None, here: Callable, apart: Callable) -> Iterator[Executor]:
    """Yield an executor; on SIGTERM and Ctrl-C the runs under way are saved.

    Args:
        name: serial, local:N or ray.
        address: of a Ray cluster, as `ray.init` takes it.
        here: the work, in this process.
        apart: the work, in a process of its own.

    Raises:
        UserError: there is no such executor, or no cluster at the address.
        Stopped: somebody asked to stop.
    """
    kind, colon, count = name.partition(":")
    if not (kind in ("serial", "ray") and not colon) and not (kind == "local" and count.isdigit() and int(count) > 0):
        raise UserError(f"executor={name} is unknown; choose serial, local:N with N processes from 1, or ray")
    if address is not None and kind != "ray":
        raise UserError(f"address={address} is that of a Ray cluster; add --executor ray, or leave it out")
    if kind == "serial":
        executor = Serial(here)
    elif kind == "local":
        from .local import Local

        executor = Local(apart, int(count))
    else:
        from .on_ray import OnRay

        executor = OnRay(apart, address)
    with sigterm_as_interrupt():
        try:
            yield executor
        except KeyboardInterrupt:
            if executor.running:
                say_stopping("the runs under way are being saved")
            raise Stopped("Stopped") from None
        finally:
            executor.stop()


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Have the first SIGTERM raise KeyboardInterrupt, as Ctrl-C does; signals reach the main thread alone.

    It often comes twice, as `timeout` sends it to a process and to its group: no reason to leave the runs unsaved.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
