"""Warnings that are repeated, which the screen shows once."""

from __future__ import annotations

import logging
import re

_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")
_MOST_KNOWN = 10_000  # kinds of warnings


class Repetitions(logging.Filter):
    """Lets one warning of a kind through; those that differ in numbers alone are of one kind.

    For a handler of the screen: a client that sends what nobody can use does so in every round. The
    run's fl.log has them all.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._known: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is shown."""
        if record.levelno != logging.WARNING:
            return True
        kind = (record.name, _NUMBER.sub("0", record.getMessage()))
        if kind in self._known:
            return False
        if len(self._known) < _MOST_KNOWN:
            self._known.add(kind)
        return True
