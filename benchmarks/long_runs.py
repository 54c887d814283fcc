"""Peak memory of runs that are long: what an update leaves behind until the run has ended.

    python benchmarks/long_runs.py [--quick] [--updates 1000000] [--out FILE]

Each run has a process of its own, in a directory with everything that a run writes. It is done once
with a quarter of the updates, and once with all: memory that is flat makes both peaks equal.
Clients pass the time of training only (client.train=false): what a run keeps of an update is the
same, and a million of them are soon done. `in the run` is the peak before the files are completed;
`with files` that of the whole run: of trace.parquet, timeline.json.gz and the plots as well.

    rounds      FedAvg, 100 clients in each round, phones that fail
    buffered    FedBuff, 100 clients at work, likewise
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import report

RUNS = {
    "rounds": ["strategy=fedavg", "strategy.clients=100"],
    "buffered": ["strategy=fedbuff", "strategy.concurrency=100", "strategy.rule.buffer_size=10"],
}
AN_EVALUATION = {"rounds": 100, "buffered": 10}  # updates
CLIENTS = 1000
TARGET_BYTES = 20.0  # an update, until the run has ended


def measure(name: str, updates: int) -> dict[str, Any]:
    """Returns what a run in a process of its own takes: CPU s, bytes at its peaks, events."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", name, str(updates), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def one(name: str, updates: int, folder: str) -> None:
    """Does one run in this process, and prints what it took."""
    from fl import run
    from fl.reports.run_writer import RunWriter

    found: dict[str, Any] = {}
    finish = RunWriter.finish

    def noting(self: RunWriter, *args: Any, **more: Any) -> dict[str, Any]:
        found.update(run_bytes=report.peak_bytes(), run_s=report.cpu_s())
        return finish(self, *args, **more)

    RunWriter.finish = noting  # type: ignore[method-assign]
    rounds = updates // AN_EVALUATION[name]
    done = run(
        *RUNS[name],
        *("data=digits", "partition.num_partitions=100", "model=logistic", "fleet=mobile"),
        *("fleet/availability=always", "client.train=false", "executor=serial", "progress=false"),
        *(f"num_clients={CLIENTS}", f"num_rounds={rounds}"),
        directory=str(Path(folder) / "run"),
    )
    found.update(
        bytes=report.peak_bytes(),
        whole_s=report.cpu_s(),
        updates=done.summary["totals"]["client_updates"],
        events=done.summary["totals"]["events"],
        trace=done.summary["trace_sha256"],
    )
    print(json.dumps(found))


def main() -> None:
    """Measures both runs at both lengths and publishes the table."""
    parser = report.parser("long_runs", __doc__)
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--only", choices=RUNS, help="one of the runs")
    parser.add_argument("--one", nargs=3, help="name, updates and folder of one run")
    settings = parser.parse_args()
    if settings.one is not None:
        name, updates, folder = settings.one
        one(name, int(updates), folder)
        return
    about = report.machine()
    updates = 40_000 if settings.quick else settings.updates
    rows: list[dict[str, Any]] = []
    for name in RUNS if settings.only is None else [settings.only]:
        short, long = measure(name, updates // 4), measure(name, updates)
        more = long["updates"] - short["updates"]
        rows.append(
            {
                "run": name,
                **long,
                "short": short,
                "run_an_update": (long["run_bytes"] - short["run_bytes"]) / more,
                "an_update": (long["bytes"] - short["bytes"]) / more,
            }
        )
    report.table(
        f"peak of memory, {updates:,} updates (target {TARGET_BYTES:g} B an update)",
        (
            *("run", "updates", "events", "in the run, MB", "B an update"),
            *("with files, MB", "B an update", "CPU s"),
        ),
        [
            (
                row["run"],
                f"{row['updates']:,}",
                f"{row['events']:,}",
                f"{row['run_bytes'] / 1e6:.0f}",
                f"{row['run_an_update']:.0f}",
                f"{row['bytes'] / 1e6:.0f}",
                f"{row['an_update']:.0f}",
                f"{row['whole_s']:.0f}",
            )
            for row in rows
        ],
    )
    goals = [
        report.Goal(f"{row['run']}: {of}, B an update", row[key], TARGET_BYTES, most=True)
        for row in rows
        for of, key in (("peak in the run", "run_an_update"), ("with files", "an_update"))
    ]
    report.publish(settings.out, rows, settings, about, goals)


if __name__ == "__main__":
    main()
