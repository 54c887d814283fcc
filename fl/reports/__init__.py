"""What a run leaves behind, and what the user watches.

The names below are loaded when first used: the command line needs some of the modules before
anything heavy is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.reports.callbacks import Callback, MLflow, WandB
    from fl.reports.progress import Progress, Status
    from fl.reports.run_writer import RunWriter, Totals
    from fl.reports.runs import Run, find_runs, group_runs, read_run
    from fl.reports.target import Target

__getattr__ = lazily(
    __name__,
    {
        "Callback": "fl.reports.callbacks",
        "MLflow": "fl.reports.callbacks",
        "Progress": "fl.reports.progress",
        "Run": "fl.reports.runs",
        "RunWriter": "fl.reports.run_writer",
        "Status": "fl.reports.progress",
        "Target": "fl.reports.target",
        "Totals": "fl.reports.run_writer",
        "WandB": "fl.reports.callbacks",
        "find_runs": "fl.reports.runs",
        "group_runs": "fl.reports.runs",
        "read_run": "fl.reports.runs",
    },
)

__all__ = [
    "Callback",
    "MLflow",
    "Progress",
    "Run",
    "RunWriter",
    "Status",
    "Target",
    "Totals",
    "WandB",
    "find_runs",
    "group_runs",
    "read_run",
]
