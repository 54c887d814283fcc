"""Accuracy, and costs of a weak phone's update: python experiments/heterofl/report.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hydra.utils import instantiate

from fl.reports.runs import read_run

METHODS = ("fedavg_whole", "fedavg_half", "heterofl", "fedrolex", "random_submodels")
METHODS += ("every_parameter_matters",)


def spans(table, begin: str, end: str) -> dict[int, float]:
    """Returns the seconds of each client between two kinds of events."""
    seconds: dict[int, float] = {}
    open_at: dict[tuple[int, int], float] = {}
    for event in table:
        key = event["client"], event["dispatch"]
        if event["kind"] == begin:
            open_at[key] = event["time_s"]
        elif event["kind"] == end and key in open_at:
            spent = event["time_s"] - open_at.pop(key)
            seconds[key[0]] = seconds.get(key[0], 0.0) + spent
    return seconds


def costs(folder: Path) -> tuple[float, float, float]:
    """Returns accuracy, and bytes both ways and joules of an update of a low-end phone."""
    run = read_run(folder)
    devices = instantiate(run.summary["config"]["fleet"]).devices
    weak = {i for i in range(len(devices.kind)) if devices.kind_name(i) == "low-end"}
    table = pq.read_table(folder / "trace.parquet").to_pylist()
    table = [event for event in table if event["client"] in weak]
    done = sum(event["kind"] == "upload_end" for event in table)
    moved = sum(event["bytes"] for event in table if event["kind"] in ("dispatch", "upload_start"))
    joules = 0.0
    for begin, end, power in (
        ("download_start", "download_end", devices.radio_w),
        ("compute_start", "compute_end", devices.compute_w),
        ("upload_start", "upload_end", devices.radio_w),
    ):
        joules += sum(power[i] * s for i, s in spans(table, begin, end).items())
    last = [row["accuracy"] for row in run.history][-4:]
    return float(np.mean(last)), moved / done, joules / done


def main() -> None:
    """Prints the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/heterofl")
    print("| method | accuracy, % | kB of an update | mJ of an update |\n|---|---:|---:|---:|")
    for method in METHODS:
        found = [costs(path.parent) for path in sorted((folder / method).rglob("summary.json"))]
        accuracy, moved, joules = np.array(found).T
        deviation = 100 * accuracy.std(ddof=1) if len(found) > 1 else 0.0
        print(
            f"| `{method}` | {100 * accuracy.mean():.1f} ± {deviation:.1f} | "
            f"{moved.mean() / 1e3:.0f} | {1e3 * joules.mean():.0f} |"
        )


if __name__ == "__main__":
    main()
