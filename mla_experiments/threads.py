"""How the threads that share out a step wait for each other, which is settled before torch is loaded.

Each part of a step ends when its last thread does. OpenMP has the others spin until then, for milliseconds: where
another process has taken a core, they keep the rest from the very thread that they wait for.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # what says it; the last is Intel's and LLVM's

SPINS = "5000"  # `bench load`: fewer cost a quiet machine more, more keep too little beside a busy process


def share_cores_with_others() -> None:
    """Have threads spin for a fraction of a millisecond before they sleep, not for several, where nobody has chosen."""
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


@contextlib.contextmanager
def environment_with(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, or take them away, for processes started meanwhile: what torch reads as it loads.

    Args:
        values: by name; None for those to take away.
    """
    before = dict(os.environ)
    os.environ.update({name: value for name, value in values.items() if value is not None})
    for name in values.keys() - {name for name, value in values.items() if value is not None}:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
