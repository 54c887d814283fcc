"""Runs that survive their process: a journal of what clients answered, and `fl resume DIR`.

The names below are loaded when first used: the command line reads a journal's head before anything
heavy is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.recovery.journal import Journal
    from fl.recovery.recovery import Recovery, Start, source_sha256
    from fl.recovery.repeatable import unrepeatable, unseeded
    from fl.recovery.replay import Journaled

__getattr__ = lazily(
    __name__,
    {
        "Journal": "fl.recovery.journal",
        "Journaled": "fl.recovery.replay",
        "Recovery": "fl.recovery.recovery",
        "Start": "fl.recovery.recovery",
        "source_sha256": "fl.recovery.recovery",
        "unrepeatable": "fl.recovery.repeatable",
        "unseeded": "fl.recovery.repeatable",
    },
)

__all__ = [
    "Journal",
    "Journaled",
    "Recovery",
    "Start",
    "source_sha256",
    "unrepeatable",
    "unseeded",
]
