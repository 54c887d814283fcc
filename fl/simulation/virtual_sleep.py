"""`time.sleep` in somebody's app passes virtual time, not the host's, and `time.time` shows it.

Apps written for deployments wait with `time.sleep`: a ServerApp between two polls, often until
`time.time` says that it has waited long enough; a ClientApp that imitates a slow device. Inside
`virtual_sleep()`, such a call goes to whoever is `answering` for the calling thread; calls from any
other thread, and from the simulator itself, get the host's sleep and time. `time.monotonic` and
`time.perf_counter` stay the host's: libraries wait for processes and sockets by them.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Sleeper = Callable[[float], None]
Now = Callable[[], float]

_real_sleep = time.sleep
_real_time = time.time
_answering = threading.local()


class _Answer:
    __slots__ = ("now", "origin", "sleeper", "slept")

    def __init__(self, sleeper: Sleeper, now: Now | None, origin: int | None) -> None:
        self.sleeper = sleeper
        self.now = now
        self.slept = 0.0
        self.origin = whole_time() if origin is None else origin


def whole_time() -> int:
    """Returns the host's time since the epoch in whole seconds.

    Differences of times counted from it do not depend on when a run began, to the last bit.
    """
    return math.floor(_real_time())


def _sleep(seconds: float) -> None:
    answer: _Answer | None = getattr(_answering, "answer", None)
    if answer is None:
        _real_sleep(seconds)
        return
    seconds = float(seconds)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"sleep length is {seconds} s; it must be finite and not negative")
    answer.slept += seconds
    answer.sleeper(seconds)


def _time() -> float:
    answer: _Answer | None = getattr(_answering, "answer", None)
    if answer is None:
        return _real_time()
    return _real_time() + answer.slept if answer.now is None else answer.origin + answer.now()


def _replace(*pairs: tuple[object, object]) -> None:
    # `from time import sleep` leaves copies in the modules that wrote it, under any name.
    news = {id(old): new for old, new in pairs}
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None) or {}
        for name in [name for name, value in list(names.items()) if id(value) in news]:
            if module is not sys.modules[__name__]:
                names[name] = news[id(names[name])]


@contextmanager
def virtual_sleep() -> Iterator[None]:
    """Routes `time.sleep` and `time.time` through `answering`; nested uses are one."""
    if time.sleep is _sleep:
        yield
        return
    _replace((_real_sleep, _sleep), (_real_time, _time))
    try:
        yield
    finally:
        _replace((_sleep, _real_sleep), (_time, _real_time))


@contextmanager
def answering(
    sleeper: Sleeper | None, now: Now | None = None, origin: int | None = None
) -> Iterator[None]:
    """Makes `sleeper` answer for this thread's calls; None lets them sleep for real.

    Args:
        sleeper: gets the seconds of every sleep.
        now: virtual time in s, which `time.time` then shows, counted from `origin`. None lets it
            show the host's time plus what was slept.
        origin: s since the epoch; None takes the host's time at the beginning of the block.
    """
    before: _Answer | None = getattr(_answering, "answer", None)
    _answering.answer = None if sleeper is None else _Answer(sleeper, now, origin)
    try:
        yield
    finally:
        _answering.answer = before
