"""What apps print and log, heard line by line, in whichever process they run.

Inside `hearing()`, standard output and standard error, and the handlers of loggers that write to
them, tell whoever is `listening` in the writing thread; without a listener they are what they were.
The handlers of `fl`'s own logger are left alone. What code writes past Python's streams, and what
threads of an app write, goes where it always went.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

_MOST_CHARACTERS = 100_000  # of what a client says in a task; the rest is only counted
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_FLOWER = "flwr"

_listening = threading.local()


class Line(NamedTuple):
    """A line that clients have said: who, on standard error or output, and what."""

    who: str
    error: bool
    text: str


class Listener(Protocol):
    """Hears what its thread writes."""

    def written(self, tap: Tap, text: str) -> None:
        """Takes text that is written to a stream; `tap.stream` is the stream itself."""

    def said(self, line: Line) -> None:
        """Takes a line of a client that runs in this thread."""


class Tap:
    """A stream whose text goes to the listener of the writing thread, if there is one.

    Args:
        stream: the stream.
        error: it is standard error.
    """

    def __init__(self, stream: Any, *, error: bool) -> None:
        self.stream = stream
        self.error = error

    @property
    def rich_proxied_file(self) -> Any:
        """Where rich's consoles write, so that a display is not taken for the app's words."""
        return getattr(self.stream, "rich_proxied_file", self.stream)

    def write(self, text: str) -> int:
        """Tells the listener, or writes."""
        listener = listener_here()
        if listener is None:
            self.stream.write(text)
        else:
            listener.written(self, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes all lines."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Returns whether a person reads this; what clients say is read by line."""
        return not isinstance(listener_here(), Ear) and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Lines:
    """Makes lines of text that comes in pieces, as a person reads them in the end.

    What was written over, as progress bars do, and what no terminal shows are left out.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0

    def of(self, text: str) -> list[str]:
        """Returns the lines that end in the next piece."""
        *whole, rest = text.split("\n")
        found = []
        for line in whole:
            self._pieces.append(line)
            found += self.rest()
        self._pieces.append(rest)
        self._length += len(rest)
        return found if self._length <= _MOST_CHARACTERS else found + self.rest()

    def rest(self) -> list[str]:
        """Returns what has come since the last line, as a line; nothing if it is blank."""
        text = "".join(self._pieces).rstrip("\r").rpartition("\r")[2]
        self._pieces, self._length = [], 0
        text = _ESCAPES.sub("", text).rstrip()
        return [text] if text else []


class Ear:
    """Hears what clients say while they work, line by line.

    Lines go to whoever was listening before; without anybody (in another process) they are kept.

    Args:
        who: the clients.
        outer: who was listening before.

    Attributes:
        lines: those that were kept.
    """

    def __init__(self, who: str, outer: Listener | None) -> None:
        self.lines: list[Line] = []
        self._who = who
        self._outer = outer
        self._written = {False: Lines(), True: Lines()}
        self._left = _MOST_CHARACTERS
        self._more = 0

    def written(self, tap: Tap, text: str) -> None:
        """Takes text that clients write."""
        for line in self._written[tap.error].of(text):
            self._take(Line(self._who, tap.error, line))

    def said(self, line: Line) -> None:
        """Passes a line on, or keeps it."""
        if self._outer is None:
            self.lines.append(line)
        else:
            self._outer.said(line)

    def close(self) -> None:
        """Takes what was written without an end of line, and tells how much was left out."""
        for error, written in self._written.items():
            for line in written.rest():
                self._take(Line(self._who, error, line))
        if self._more:
            self.said(Line(self._who, False, f"({self._more:,} more lines)"))

    def _take(self, line: Line) -> None:
        self._left -= len(line.text)
        if self._left >= 0:
            self.said(line)
        else:
            self._left = 0
            self._more += 1


def listener_here() -> Listener | None:
    """Returns who listens to this thread."""
    listener: Listener | None = getattr(_listening, "listener", None)
    return listener


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Makes a listener hear this thread; None lets it write to the streams themselves."""
    before = listener_here()
    _listening.listener = listener
    try:
        yield
    finally:
        _listening.listener = before


@contextmanager
def hearing_clients(who: str) -> Iterator[Ear]:
    """Hears clients in the block; see `Ear`."""
    ear = Ear(who, listener_here())
    try:
        with listening(ear):
            yield ear
    finally:
        ear.close()


@contextmanager
def hearing() -> Iterator[None]:
    """Makes listening possible; nested uses are one."""
    if isinstance(sys.stdout, Tap):
        yield
        return
    before = sys.stdout, sys.stderr
    taps = Tap(sys.stdout, error=False), Tap(sys.stderr, error=True)
    handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
    for handler, of_flower in _handlers():
        for stream, tap in zip(before, taps, strict=True):
            # Flower's has whatever was standard error when it was imported.
            if handler.__dict__.get("stream") is stream or (of_flower and tap.error):
                handlers.append((handler, handler.stream))
                handler.stream = tap  # without a flush of the stream, which may be closed
                break
    sys.stdout, sys.stderr = taps
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for handler, stream in handlers:
            handler.stream = stream


def _handlers() -> Iterator[tuple[logging.StreamHandler[Any], bool]]:
    """Yields handlers that write to streams, and whether they are Flower's; none of `fl`'s."""
    loggers = [("", logging.getLogger()), *logging.Logger.manager.loggerDict.items()]
    for name, logger in loggers:
        if not isinstance(logger, logging.Logger) or name.partition(".")[0] == "fl":
            continue
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(
                handler, logging.FileHandler
            ):
                yield handler, name == _FLOWER
