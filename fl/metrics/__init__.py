"""What a run leaves behind, and what the user watches."""

from fl.metrics.progress import Progress, Status
from fl.metrics.run_writer import RunWriter, Totals
from fl.metrics.runs import Run, find_runs, group_runs, read_run
from fl.metrics.target import Target

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
