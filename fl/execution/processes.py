"""Processes that are known by a mark in their environment, as are all that they start.

Linux only: elsewhere nothing is known.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PAUSE_S = 0.2


def new_mark() -> str:
    """Returns a mark that no other process has, now or later."""
    return f"{os.getpid()}-{time.monotonic_ns()}"


def marked(name: str, mark: str) -> list[int]:
    """Returns the ids of the running processes that were started with `name=mark`, and theirs."""
    wanted = f"{name}={mark}".encode()
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if wanted in _content(path).split(b"\0")
    ]


def end(running: Callable[[], list[int]], sign: signal.Signals, wait_s: float) -> bool:
    """Sends a signal to processes until none is left: they may have started others meanwhile.

    Args:
        running: returns their ids.
        sign: what is sent.
        wait_s: most s to wait.

    Returns:
        Whether none is left.
    """
    until = time.monotonic() + wait_s
    while found := running():
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, sign)
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE_S)
    return True


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""
