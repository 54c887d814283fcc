"""What the app says, on the screen and in the run's fl.log."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import flwr

from fl.execution.speech import Ear, Line, Lines, Tap, hearing, listener_here, listening

log = logging.getLogger("fl")
told = logging.getLogger("fl.app")
told.setLevel(logging.INFO)

FILE = "fl.log"

_MOST_KNOWN = 100_000  # lines that are not shown again
_LONGEST = 2000  # characters of a line on the screen


class Transcript:
    """Shows what an app says, once, and writes it down.

    What the ServerApp prints, or logs, goes where it would go without us. A line of a client is
    shown with the client's name, if no client has said the same before. All lines are in the file,
    with the virtual time at which their reply was needed; repetitions too.

    Args:
        directory: of the run; None writes nothing.

    Attributes:
        now: returns virtual time in s.
    """

    def __init__(self, directory: Path | None) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self._path = None if directory is None else directory / FILE
        self._known: set[bytes] = set()
        self._repeated = 0
        self._written = {False: Lines(), True: Lines()}
        self._shows = True

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Hears the app that runs in the block."""
        try:
            with hearing(), shown_once(self), listening(self):
                yield
        finally:
            for written in self._written.values():
                self._note_all(written.rest())
        if self._repeated:
            where = "" if self._path is None else f"; {self._path} has them"
            told.info("%d lines of clients were repetitions%s", self._repeated, where)

    def written(self, tap: Tap, text: str) -> None:
        """Passes on what the ServerApp writes, and notes its whole lines."""
        tap.stream.write(text)
        self._note_all(self._written[tap.error].of(text))

    def said(self, line: Line) -> None:
        """Shows and notes a line of a client."""
        self.note(line.text, line.who)
        known = hashlib.blake2b(line.text.encode(errors="backslashreplace"), digest_size=16)
        if known.digest() in self._known:
            self._repeated += 1
            return
        if len(self._known) < _MOST_KNOWN:
            self._known.add(known.digest())
        if not self._shows:
            return
        try:
            with listening(None):
                stream = sys.stderr if line.error else sys.stdout
                print(f"{line.who} | {line.text[:_LONGEST]}", file=stream, flush=True)
        except (OSError, ValueError):  # a closed pipe: the run is worth more
            self._shows = False

    def note(self, text: str, who: str = "") -> None:
        """Writes a line to the file alone."""
        self._note_all([text], who)

    def _note_all(self, lines: Sequence[str], who: str = "") -> None:
        if self._path is None or not lines:
            return
        start = f"{self.now():.6g} s | {who} | " if who else f"{self.now():.6g} s | "
        text = "".join(f"{start}{line}\n" for line in lines)
        try:
            with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:  # a full disk: the run is worth more
            log.warning("%s cannot be written: %s", self._path, error.strerror)
            self._path = None


class _Chatter(logging.Filter):
    """Lets through what apps say by Flower's logger; Flower's own account is the display's to give.

    Its warnings are noted in the run's file, its errors are shown.
    """

    transcript: Transcript | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is shown."""
        if not record.pathname.startswith(_FLOWER) or isinstance(listener_here(), Ear):
            return True
        if record.levelno >= logging.ERROR:
            return True
        if record.levelno >= logging.WARNING and self.transcript is not None:
            for line in Lines().of(f"{record.getMessage()}\n"):
                self.transcript.note(line, "flwr")
        return False


_FLOWER = os.path.dirname(str(flwr.__file__)) + os.sep
_chatter = _Chatter()


@contextmanager
def shown_once(transcript: Transcript | None = None) -> Iterator[None]:
    """Shows in the block what apps say by Flower's logger, once, and little that Flower says.

    That logger has a handler, and an app may give one to the root logger. So has ours, when Hydra
    has set it up; then there is no transcript yet.
    """
    flower = logging.getLogger("flwr")
    before = flower.propagate, log.propagate, _chatter.transcript, _chatter in flower.filters
    flower.propagate = not flower.handlers
    if transcript is None:
        log.propagate = not log.handlers
    _chatter.transcript = transcript or _chatter.transcript
    flower.addFilter(_chatter)
    try:
        yield
    finally:
        flower.propagate, log.propagate, _chatter.transcript, installed = before
        if not installed:
            flower.removeFilter(_chatter)
