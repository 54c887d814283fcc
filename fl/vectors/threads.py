"""How many threads a training step may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Runs the block with `count` torch threads.

    Sums split over threads round differently, so a run fixes the number instead of taking the
    machine's.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def limit_blas(count: int) -> Iterator[None]:
    """Runs the block with `count` threads in NumPy's matrix products.

    They round as the number of threads says, which otherwise is the machine's; and for some time
    after a product the idle ones keep a core busy that clients could use. Libraries that are loaded
    later are not limited.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(count, user_api="blas"):
        yield


def cores() -> int:
    """Returns how many CPUs this process may use: within its affinity and its container's share."""
    import joblib

    return int(joblib.cpu_count())
