"""How long a run that was killed takes to go on, with a snapshot and without one.

    python benchmarks/resume.py [--quick] [--rounds 10000] [--out FILE]

A run of FedAvg, 10 clients a round, logistic regression on digits, in a process of its own, which
kills itself when a number of rounds has been evaluated. What goes on from there is a process as
well, once with the snapshot and once without: its CPU and host seconds from its start, imports and
data included, until the journal has no more answers and it trains. The shorter of the two runs says
how much of that is the start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import report

TARGET_S = 10.0  # CPU
RUN = [
    *("strategy=fedavg", "strategy.clients=10", "data=digits", "model=logistic", "num_clients=100"),
    *("executor=serial", "progress=false", "fleet=mobile", "fleet/availability=always"),
]


def killed(rounds: int, folder: str) -> None:
    """Runs in this process, which ends when so many rounds have been evaluated."""
    from fl import run
    from fl.reports import Callback
    from fl.reports.history import Row

    class Killer(Callback):
        def evaluation(self, row: Row) -> None:
            if row["round"] == rounds:
                print(json.dumps({"cpu_s": report.cpu_s()}), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    run(*RUN, f"num_rounds={2 * rounds}", directory=folder, callbacks=[Killer()])


def resumed(rounds: int, folder: str) -> None:
    """Goes on with the run in this process, until it trains."""
    began = report.host_s()
    from fl.runs.build import prepare
    from fl.runs.journal import Journal
    from fl.runs.python import composed
    from fl.runs.run import run_prepared

    go_on = Journal._go_on

    def trains(self: Journal, *arguments: Any) -> None:
        go_on(self, *arguments)
        told = {"cpu_s": report.cpu_s(), "host_s": report.host_s() - began}
        told |= {"answers": self.answers, "bytes": report.peak_bytes()}
        print(json.dumps(told), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    Journal._go_on = trains  # type: ignore[assignment, method-assign]
    with composed([*RUN, f"num_rounds={2 * rounds}"], directory=Path(folder)) as config:
        run_prepared(config, prepare(config), Path(folder), resume=True)


def told(*arguments: object) -> dict[str, Any]:
    """Returns what a process of this script prints last, which is killed in the end."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != -signal.SIGKILL:
        raise SystemExit(f"{arguments}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(rounds: int) -> dict[str, Any]:
    """Returns what it takes to go on after so many rounds."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "run")
        row: dict[str, Any] = {
            "rounds": rounds,
            "run_cpu_s": told("killed", rounds, whole)["cpu_s"],
        }
        checkpoint = whole / "checkpoint"
        row["journal_bytes"] = (checkpoint / "journal").stat().st_size
        snapshot = checkpoint / "snapshot"
        row["snapshot_bytes"] = snapshot.stat().st_size if snapshot.exists() else 0
        for way in ("with", "without"):
            again = Path(place, way)
            shutil.copytree(whole, again)
            if way == "without":
                (again / "checkpoint" / "snapshot").unlink(missing_ok=True)
            row[way] = told("resumed", rounds, again)
            shutil.rmtree(again)
        return row


def main() -> None:
    """Measures two lengths and publishes the table."""
    parser = report.parser("resume", __doc__)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--one", nargs=3, help="what, rounds and folder of one process")
    settings = parser.parse_args()
    if settings.one is not None:
        what, rounds, folder = settings.one
        {"killed": killed, "resumed": resumed}[what](int(rounds), folder)
        return
    about = report.machine()
    rounds = 1000 if settings.quick else settings.rounds
    rows = [measure(n) for n in (max(1, rounds // 10), rounds)]
    report.table(
        "from the start of a process to its first training (with a snapshot, without)",
        (
            *("rounds", "the run, CPU s", "resumed, CPU s", "host s", "peak, MB"),
            *("journal, MB", "snapshot, MB"),
        ),
        [
            (
                f"{row['rounds']:,}",
                f"{row['run_cpu_s']:.0f}",
                *(
                    ", ".join(f"{row[way][key] * scale:.1f}" for way in ("with", "without"))
                    for key, scale in (("cpu_s", 1), ("host_s", 1), ("bytes", 1e-6))
                ),
                f"{row['journal_bytes'] / 1e6:.0f}",
                f"{row['snapshot_bytes'] / 1e6:.1f}",
            )
            for row in rows
        ],
    )
    goal = report.Goal(
        f"resumed after {rounds:,} rounds, CPU s", rows[-1]["with"]["cpu_s"], TARGET_S, most=True
    )
    report.publish(settings.out, rows, settings, about, [goal])


if __name__ == "__main__":
    main()
