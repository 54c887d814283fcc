"""How often Python looks for garbage."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_START_THRESHOLDS = 100_000, 50, 100

_THRESHOLDS = 20_000, 10, 10  # more objects than a round of a hundred messages makes

# Between two looks at everything, which take a third of a second:
_MOST_RUNS = 16
_GROWTH = 1.25  # of the process' peak of memory


@contextmanager
def seldom_garbage_collection() -> Iterator[None]:
    """Lets Python look for garbage seldom while libraries are imported.

    Their million objects stay, and looking through them again and again is a fifth of the start.
    """
    with _thresholds(*_START_THRESHOLDS):
        yield


@contextmanager
def quick_garbage_collection() -> Iterator[None]:
    """Keeps what exists already, mostly imported libraries, out of every garbage collection.

    Some of Flower's strategies (QFedAvg, Bulyan) ask for one after each reply: 0.4 s, otherwise.
    Young objects are looked at less often than Python does by default, every 700 of them: a message
    and its reply are some thirty, and nearly all die by their reference count.

    What exists already may be garbage, of an earlier run in this process: a run's parts know each
    other. After some runs, or when the process has grown, everything is looked at once before.
    """
    if gc.get_freeze_count():  # somebody else has done so, and will undo it
        yield
        return
    _Runs.begin()
    gc.freeze()
    try:
        with _thresholds(*_THRESHOLDS):
            yield
    finally:
        gc.unfreeze()


@contextmanager
def _thresholds(*thresholds: int) -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*thresholds)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Runs:
    """The runs of this process.

    Attributes:
        since: how many have begun since everything was looked at last.
        peak: the most memory that the process had had then, in bytes; 0 before the first run.
    """

    since = 0
    peak = 0

    @classmethod
    def begin(cls) -> None:
        """Collects the garbage of the runs before if that is worth it; the first one has none."""
        peak = peak_bytes()
        if cls.peak and (cls.since >= _MOST_RUNS or peak > _GROWTH * cls.peak):
            gc.collect()
            cls.since, cls.peak = 0, peak
        cls.since += 1
        cls.peak = cls.peak or peak


def peak_bytes() -> int:
    """Returns the most memory this process has had resident so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
