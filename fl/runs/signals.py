"""Signals that ask a process to end: it ends as after Ctrl-C, in good order, and only once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to end.

    Attributes:
        signal: which one.
        status: with which the process ends, as a shell would say it.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.status = 128 + number
        super().__init__(self.signal.name)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises `Stopped` in the block when it is interrupted, terminated, or its terminal closes.

    A second signal ends the process at once. One that is ignored (`nohup`) stays ignored. Outside
    of the main thread, where Python handles no signals, the block is left as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _ASKING}
    heard = {
        number: handler
        for number, handler in handlers.items()
        if callable(handler) or handler == signal.SIG_DFL
    }

    def stop(number: int, frame: FrameType | None) -> None:
        for each in heard:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    try:
        for number in heard:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
