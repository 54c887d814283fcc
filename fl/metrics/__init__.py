"""What a run leaves behind, and what the user watches.

The names below are loaded when first used: the command line needs some of the modules before
anything heavy is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.metrics.progress import Progress, Status
    from fl.metrics.run_writer import RunWriter, Totals
    from fl.metrics.runs import Run, find_runs, group_runs, read_run
    from fl.metrics.target import Target

__getattr__ = lazily(
    __name__,
    {
        "Progress": "fl.metrics.progress",
        "Run": "fl.metrics.runs",
        "RunWriter": "fl.metrics.run_writer",
        "Status": "fl.metrics.progress",
        "Target": "fl.metrics.target",
        "Totals": "fl.metrics.run_writer",
        "find_runs": "fl.metrics.runs",
        "group_runs": "fl.metrics.runs",
        "read_run": "fl.metrics.runs",
    },
)

__all__ = [
    "Progress",
    "Run",
    "RunWriter",
    "Status",
    "Target",
    "Totals",
    "find_runs",
    "group_runs",
    "read_run",
]
