"""Runs that survive their process: a journal of what clients answered, and `fl resume DIR`.

The names below are loaded when first used: the command line reads a journal's head before anything
heavy is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.runs.journal.journal import Journal
    from fl.runs.journal.recovery import Recovery, RunStart, source_sha256
    from fl.runs.journal.repeatable import unrepeatable, unseeded
    from fl.runs.journal.replay import Journaled

__getattr__ = lazily(
    __name__,
    {
        "Journal": "fl.runs.journal.journal",
        "Journaled": "fl.runs.journal.replay",
        "Recovery": "fl.runs.journal.recovery",
        "RunStart": "fl.runs.journal.recovery",
        "source_sha256": "fl.runs.journal.recovery",
        "unrepeatable": "fl.runs.journal.repeatable",
        "unseeded": "fl.runs.journal.repeatable",
    },
)

__all__ = [
    "Journal",
    "Journaled",
    "Recovery",
    "RunStart",
    "source_sha256",
    "unrepeatable",
    "unseeded",
]
