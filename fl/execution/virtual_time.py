"""The clocks of somebody's app show virtual time, and its `time.sleep` passes it.

Apps ask for the time in many ways: a ServerApp waits until `time.time` says that it has waited long
enough, a ClientApp reports what it took, or makes a seed of the date. Inside `virtual_time()`,
`time.sleep`, the clocks of `time`, and `datetime.now`, `utcnow` and `today` go to whoever is
`answering` for the calling thread.

Who asks matters as well. The standard library waits for sockets, locks and processes by these
clocks, other packages do, and `fl` measures itself by them: they get the host's, and so does any
thread for which nobody answers. An installed package that uses Flower counts as an app.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from functools import lru_cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

EPOCH = 1_735_689_600
"""2025-01-01 in UTC, in s since 1970: the date at virtual time 0 unless a run is given another."""

_TICK_S = 1e-6  # no two looks at a clock show the same: apps divide by what passed between them
_MANY_LOOKS = 10_000  # so many at one virtual time are somebody who waits for it to pass:
_WAIT_S = 1e-3  # from then on every look is a short sleep

_real_sleep = time.sleep
_real_time = time.time
_real_elapsed = time.perf_counter
_real_localtime = time.localtime
_answering = threading.local()


class AppClock(Protocol):
    """What answers for an app."""

    def now(self) -> float:
        """Returns virtual time in s."""

    def sleep(self, seconds: float) -> None:
        """Lets virtual time pass."""


class TaskClock:
    """Time on a client's device during one task: it passes while the client sleeps.

    Args:
        host: it also passes with the host's time, so that no two runs are alike.

    Attributes:
        slept_s: s that the client has slept.
    """

    def __init__(self, *, host: bool = False) -> None:
        self.slept_s = 0.0
        self._began = _real_elapsed() if host else None

    def now(self) -> float:
        """Returns s since the task began."""
        return self.slept_s + (0.0 if self._began is None else _real_elapsed() - self._began)

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.slept_s += seconds


def host_date() -> int:
    """Returns the host's time in s since 1970.

    Whole, so that differences of times counted from it do not depend on when a run began, to the
    last bit.
    """
    return math.floor(_real_time())


class _Answer:
    """Answers one thread's questions about time."""

    __slots__ = ("_at", "_clock", "_same", "_ticks", "epoch", "on_date")

    def __init__(self, clock: AppClock, epoch: float, on_date: Callable[[], None] | None) -> None:
        self.epoch = epoch
        self.on_date = on_date
        self._clock = clock
        self._at = -1.0  # virtual time of the last look
        self._same = 0  # looks since it came to that
        self._ticks = 0

    def sleep(self, seconds: float) -> None:
        seconds = float(seconds)
        if not 0 <= seconds < math.inf:
            raise ValueError(f"sleep length is {seconds} s; it must be finite and not negative")
        self._clock.sleep(seconds)

    def elapsed(self) -> float:
        """Returns s since virtual time 0, a little more at every look."""
        now = self._clock.now()
        if now != self._at:
            self._same = 0
        else:
            self._same += 1
            self._ticks += 1
            if self._same > _MANY_LOOKS:
                self._clock.sleep(_WAIT_S)
                now = self._clock.now()
        self._at = now
        return now + self._ticks * _TICK_S

    def date(self) -> float:
        """Returns s since 1970."""
        return self.epoch + self.elapsed()


@contextmanager
def answering(
    clock: AppClock | None, epoch: float = EPOCH, on_date: Callable[[], None] | None = None
) -> Iterator[None]:
    """Makes a clock answer for this thread's calls; None lets them have the host's.

    Args:
        clock: shows virtual time, and passes it.
        epoch: what `time.time` shows at virtual time 0, s since 1970.
        on_date: called when the app, and not Flower, asks for the date instead of for seconds.
    """
    before: _Answer | None = getattr(_answering, "answer", None)
    _answering.answer = None if clock is None else _Answer(clock, epoch, on_date)
    try:
        yield
    finally:
        _answering.answer = before


@contextmanager
def virtual_time() -> Iterator[None]:
    """Routes an app's questions about time through `answering`; nested uses are one."""
    if time.sleep is _sleep:
        yield
        return
    _replace({id(real): shown for real, shown in _FUNCTIONS})
    _set_methods({key: classmethod(shown) for key, (_, shown) in _METHODS.items()})
    try:
        yield
    finally:
        _replace({id(shown): real for real, shown in _FUNCTIONS})
        _set_methods({key: real for key, (real, _) in _METHODS.items()})


# ---- who asks ------------------------------------------------------------------------------------


class _Asker(Enum):
    LIBRARY = 0
    FLOWER = 1
    APP = 2


_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = os.path.dirname(os.__file__) + os.sep
_OWN = str(Path(__file__).parents[1]) + os.sep


def _asked(*, date: bool = False) -> _Answer | None:
    """Returns who answers the code that has called the caller; None if it gets the host's time."""
    answer: _Answer | None = getattr(_answering, "answer", None)
    if answer is None:
        return None
    asker = _asker(sys._getframe(2).f_code.co_filename)
    if asker is _Asker.LIBRARY:
        return None
    if date and asker is _Asker.APP and answer.on_date is not None:
        answer.on_date()
    return answer


@lru_cache(maxsize=4096)
def _asker(filename: str) -> _Asker:
    if filename.startswith((_OWN, "<frozen ")):
        return _Asker.LIBRARY
    parts = Path(filename).parts
    installed = next((name for name in _INSTALLED if name in parts[:-1]), None)
    if installed is not None:
        package = parts[parts.index(installed) + 1].removesuffix(".py")
        if package == "flwr":
            return _Asker.FLOWER
        return _Asker.APP if _uses_flower(package) else _Asker.LIBRARY
    return _Asker.LIBRARY if filename.startswith(_STANDARD) else _Asker.APP


def _uses_flower(package: str) -> bool:
    """Returns whether a module of an imported package holds anything of Flower's."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != package:
            continue
        for value in list(getattr(module, "__dict__", {}).values()):
            origin = value.__name__ if isinstance(value, ModuleType) else None
            with suppress(Exception):  # an object of theirs may answer anything
                origin = origin or value.__module__
            if isinstance(origin, str) and origin.partition(".")[0] == "flwr":
                return True
    return False


# ---- what they ask -------------------------------------------------------------------------------


def _sleep(seconds: float) -> None:
    answer = _asked()
    if answer is None:
        _real_sleep(seconds)
    else:
        answer.sleep(seconds)


def _seconds(real: Callable[[], float], *, dated: bool = False) -> Callable[[], float]:
    @wraps(real)
    def shown() -> float:
        answer = _asked()
        if answer is None:
            return real()
        return answer.date() if dated else answer.elapsed()

    return shown


def _nanoseconds(real: Callable[[], int], *, dated: bool = False) -> Callable[[], int]:
    @wraps(real)
    def shown() -> int:
        answer = _asked()
        if answer is None:
            return real()
        return round((answer.epoch if dated else 0) * 10**9) + round(answer.elapsed() * 1e9)

    return shown


def _of_seconds(real: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `localtime` and its like, which take s since 1970, by default those of now."""

    @wraps(real)
    def shown(seconds: float | None = None, /) -> Any:
        answer = _asked(date=True) if seconds is None else None
        return real(seconds if answer is None else answer.date())

    return shown


def _strftime(form: str, moment: Any = None, /) -> str:
    answer = _asked(date=True) if moment is None else None
    if answer is not None:
        moment = _real_localtime(answer.date())
    return _real_strftime(form) if moment is None else _real_strftime(form, moment)


def _asctime(moment: Any = None, /) -> str:
    answer = _asked(date=True) if moment is None else None
    if answer is not None:
        moment = _real_localtime(answer.date())
    return _real_asctime() if moment is None else _real_asctime(moment)


_real_strftime, _real_asctime = time.strftime, time.asctime
_FUNCTIONS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (time.sleep, _sleep),
    (time.time, _seconds(time.time, dated=True)),
    (time.time_ns, _nanoseconds(time.time_ns, dated=True)),
    *((real, _seconds(real)) for real in (time.perf_counter, time.monotonic)),
    *((real, _seconds(real)) for real in (time.process_time, time.thread_time)),
    *((real, _nanoseconds(real)) for real in (time.perf_counter_ns, time.monotonic_ns)),
    *((real, _nanoseconds(real)) for real in (time.process_time_ns, time.thread_time_ns)),
    *((real, _of_seconds(real)) for real in (time.localtime, time.gmtime, time.ctime)),
    (time.strftime, _strftime),
    (time.asctime, _asctime),
)


def _now(cls: Any, tz: datetime.tzinfo | None = None) -> Any:
    answer = _asked(date=True)
    if answer is None:
        return _METHODS[datetime.datetime, "now"][0].__get__(None, cls)(tz)
    return cls.fromtimestamp(answer.date(), tz)


def _utcnow(cls: Any) -> Any:
    answer = _asked(date=True)
    if answer is None:
        return _METHODS[datetime.datetime, "utcnow"][0].__get__(None, cls)()
    return cls.fromtimestamp(answer.date(), datetime.UTC).replace(tzinfo=None)


def _today(cls: Any) -> Any:
    answer = _asked(date=True)
    if answer is None:
        return _METHODS[datetime.date, "today"][0].__get__(None, cls)()
    return cls.fromtimestamp(answer.date())


_METHODS: dict[tuple[type, str], tuple[Any, Callable[..., Any]]] = {
    (datetime.datetime, "now"): (datetime.datetime.__dict__["now"], _now),
    (datetime.datetime, "utcnow"): (datetime.datetime.__dict__["utcnow"], _utcnow),
    (datetime.date, "today"): (datetime.date.__dict__["today"], _today),
}


def _replace(new_of: dict[int, Callable[..., Any]]) -> None:
    """Puts functions in the place of others: id of the old one -> the new one."""
    # `from time import sleep` leaves copies in the modules that wrote it, under any name.
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None) or {}
        # Nearly no module has one, and there are many: the first look at each is in C.
        if new_of.keys().isdisjoint(map(id, list(names.values()))):
            continue
        if module is sys.modules[__name__]:
            continue
        for name in [name for name, value in list(names.items()) if id(value) in new_of]:
            names[name] = new_of[id(names[name])]


def _set_methods(methods: dict[tuple[type, str], Any]) -> None:
    """Sets methods of types written in C, which refuse it.

    A subclass in their place would do for `datetime.now()`, but not for what asks whether a type is
    `datetime`, pickles one, or imported it before. So the types' own dictionaries are changed.
    """
    for (kind, name), method in methods.items():
        (own,) = gc.get_referents(kind.__dict__)
        own[name] = method
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
