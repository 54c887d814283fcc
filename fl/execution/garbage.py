"""How often Python looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

START_THRESHOLDS = 100_000, 50, 100
"""For `gc.set_threshold` before the libraries are imported.

Their million objects stay, and looking through them again and again is a fifth of the start.
"""

_THRESHOLDS = 20_000, 10, 10  # more objects than a round of a hundred messages makes


@contextmanager
def quick_garbage_collection() -> Iterator[None]:
    """Keeps what exists already, mostly imported libraries, out of every garbage collection.

    Some of Flower's strategies (QFedAvg, Bulyan) ask for one after each reply: 0.4 s, otherwise.
    Young objects are looked at less often than Python does by default, every 700 of them: a message
    and its reply are some thirty, and nearly all die by their reference count.
    """
    if gc.get_freeze_count():  # somebody else has done so, and will undo it
        yield
        return
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
