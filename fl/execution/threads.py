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


def cores() -> int:
    """Returns how many CPUs this process may use: within its affinity and its container's share."""
    import joblib

    return int(joblib.cpu_count())
