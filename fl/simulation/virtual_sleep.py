"""`time.sleep` in somebody's app passes virtual time instead of the host's.

Apps written for deployments wait with `time.sleep`: a ServerApp between two polls, a ClientApp that
imitates a slow device. Inside `virtual_sleep()`, such a call goes to whoever is `answering` for the
calling thread; calls from any other thread, and from the simulator itself, really sleep.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Sleeper = Callable[[float], None]

_real_sleep = time.sleep
_answering = threading.local()


def _sleep(seconds: float) -> None:
    sleeper: Sleeper | None = getattr(_answering, "sleeper", None)
    (_real_sleep if sleeper is None else sleeper)(seconds)


def _replace(old: Sleeper, new: Sleeper) -> None:
    # `from time import sleep` leaves copies in the modules that wrote it.
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if names is not None and names.get("sleep") is old:
            names["sleep"] = new


@contextmanager
def virtual_sleep() -> Iterator[None]:
    """Routes `time.sleep` through `answering`; nested uses are one."""
    if time.sleep is _sleep:
        yield
        return
    _replace(_real_sleep, _sleep)
    try:
        yield
    finally:
        _replace(_sleep, _real_sleep)


@contextmanager
def answering(sleeper: Sleeper | None) -> Iterator[None]:
    """Makes `sleeper` answer for this thread's calls; None lets them sleep for real."""
    before: Sleeper | None = getattr(_answering, "sleeper", None)
    _answering.sleeper = sleeper
    try:
        yield
    finally:
        _answering.sleeper = before
