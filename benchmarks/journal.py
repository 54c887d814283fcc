"""What the journal of a run costs, and how much quicker a replay is than the run.

    python benchmarks/journal.py [--quick] [--turns N] [--out FILE]

The same run of `strategy=fedavg` on one process, in turns: without a journal, with one, and
replayed from a journal that holds all of it. The bytes are those of the journal, for each answer.
What the journal adds is in CPU time, which other work on the machine disturbs less: the median of
the differences within a turn.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import report
from flwr.app import Context
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module

from fl import simulate
from fl.runs.build import build
from fl.runs.journal import Recovery, RunStart
from fl.runs.recorder import Recorder

MODELS = {
    "logistic regression": ["model=logistic"],
    "MLP 64-64-10": ["model=mlp"],
    "MLP with EF top-k": ["model=mlp", "compressor=ef_topk"],
    "MLP 64-512-10": ["model=mlp", "model.hidden=[512]"],
}
CLIENTS = 50
LEAST = 0.97  # of the rate without a journal


class _Stop(Exception):
    """Ends a run before its journal is removed."""


def seconds(
    overrides: list[str], rounds: int, directory: Path, recovery: Recovery | None
) -> tuple[float, float]:
    """Returns the host and CPU seconds of all rounds; the run then stops."""
    with initialize_config_module("fl.conf", version_base=None):
        config = compose(
            "config",
            [
                *overrides,
                "data=digits",
                "partition=iid",
                "fleet=uniform",
                "strategy=fedavg",
                "strategy.fraction_train=1",
                "executor=serial",
                f"num_clients={CLIENTS}",
            ],
        )
    parts = build(config)
    taken, cpu = 0.0, 0.0

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        nonlocal taken, cpu
        began, busy = report.host_s(), report.cpu_s()
        parts.strategy.start(grid=grid, initial_arrays=parts.initial(), num_rounds=rounds)
        taken, cpu = report.host_s() - began, report.cpu_s() - busy
        raise _Stop

    with contextlib.suppress(_Stop):
        simulate(
            server,
            parts.app,
            parts.fleet,
            executor=parts.executor,
            directory=directory,
            recovery=recovery,
            progress=False,
            views=False,
        )
    return taken, cpu


def measure(overrides: list[str], rounds: int, turns: int) -> dict[str, float]:
    """Returns updates per second of each way, and what the journal adds to each update."""
    times: dict[str, list[tuple[float, float]]] = {"without": [], "with": [], "replayed": []}
    updates = CLIENTS * rounds
    size = 0
    for _ in range(turns + 1):
        with tempfile.TemporaryDirectory() as folder:
            kept, none = Path(folder, "kept"), Path(folder, "none")
            times["without"].append(seconds(overrides, rounds, none, None))
            times["with"].append(seconds(overrides, rounds, kept, Recovery()))
            size = (kept / "checkpoint" / "journal").stat().st_size
            again = Recovery(start=RunStart(resume=True))
            times["replayed"].append(seconds(overrides, rounds, kept, again))
    rates = {
        way: updates / statistics.median(taken for taken, _ in found[1:])
        for way, found in times.items()
    }
    added = [
        more - less
        for (_, more), (_, less) in zip(times["with"][1:], times["without"][1:], strict=True)
    ]
    cost = 1e6 * statistics.median(added) / updates
    replay = 1e6 * statistics.median(cpu for _, cpu in times["replayed"][1:]) / updates
    return {**rates, "bytes": size / updates, "added_us": cost, "replay_us": replay}


def main() -> None:
    """Measures all models and publishes the table."""
    parser = report.parser("journal", __doc__)
    parser.add_argument("--turns", type=int, default=5)
    settings = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    about = report.machine()
    rounds, turns = (10, 3) if settings.quick else (30, settings.turns)
    rows: list[dict[str, Any]] = []
    for name, overrides in MODELS.items():
        found = measure(overrides, rounds, turns)
        rows.append({"model": name, "rounds": rounds, "clients": CLIENTS, **found})
    report.table(
        "client updates per second, one process",
        (
            *("model", "without", "with", "with / without", "replayed", "bytes an update"),
            *("journal, CPU us an update", "replay, CPU us an update"),
        ),
        [
            (
                row["model"],
                f"{row['without']:.0f}",
                f"{row['with']:.0f}",
                f"{row['with'] / row['without']:.2f}",
                f"{row['replayed']:.0f}",
                f"{row['bytes']:.0f}",
                f"{row['added_us']:.0f}",
                f"{row['replay_us']:.0f}",
            )
            for row in rows
        ],
    )
    goals = [
        report.Goal(f"{row['model']}: rate with the journal, of that without", rate, LEAST)
        for row in rows
        if (rate := row["with"] / row["without"])
    ]
    report.publish(settings.out, rows, settings, about, goals)


if __name__ == "__main__":
    main()
