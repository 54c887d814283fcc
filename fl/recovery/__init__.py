"""Runs that survive their process: a journal of what clients answered, and `fl resume DIR`."""

from fl.recovery.journal import Journal
from fl.recovery.recovery import Recovery, Start, source_sha256
from fl.recovery.repeatable import unrepeatable, unseeded
from fl.recovery.replay import Journaled

__all__ = [
    "Journal",
    "Journaled",
    "Recovery",
    "Start",
    "source_sha256",
    "unrepeatable",
    "unseeded",
]
