"""Rounds without training, as arrays and event by event: CPU time of a task, side by side.

    python benchmarks/cohorts.py [--quick] [--clients 131072] [--rounds 20] [--out FILE]

FedAvg of the logistic model, all clients that are there in every round, with faults, trace and the
record of the run: as arrays, and as messages on the event engine. Both must leave the same
trace. Event by event fewer clients and rounds will do; then arrays alone have the whole population.

    uniform       equal devices and links, which share nothing
    mobile        phones that come, go and fail, on a server's link that they share
    always there  the same phones, none of which is ever away
"""

from __future__ import annotations

import logging
import resource
from typing import Any

import report
from flwr.app import Context
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module

from fl import simulate
from fl.runs.build import build
from fl.runs.recorder import Recorder
from fl.simulation.grid import SimGrid

FLEETS = {
    "uniform": ["fleet=uniform"],
    "mobile": ["fleet=mobile"],
    "always there": ["fleet=mobile", "fleet/availability=always"],
}
COMPARED = 5_000
TARGET_S = 60.0


def measure(fleet: str, clients: int, rounds: int, *, arrays: bool) -> dict[str, Any]:
    """Returns what a run takes: CPU s of it and of its rounds, tasks, peak of memory, trace."""
    began = report.cpu_s()
    with initialize_config_module("fl.conf", version_base=None):
        config = compose(
            "config",
            [
                *("data=digits", "partition.num_partitions=100", "model=logistic"),
                *("client.train=false", "executor=serial", f"num_clients={clients}"),
                *("strategy=fedavg", "strategy.fraction_train=1.0", *FLEETS[fleet]),
            ],
        )
    parts = build(config)
    found: dict[str, Any] = {}

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        assert isinstance(grid, SimGrid)
        if not arrays:
            grid.cohorts.needs_events = "it is what arrays are compared with"
        since = report.cpu_s()
        parts.strategy.start(
            grid=grid,
            initial_arrays=parts.initial(),
            num_rounds=rounds,
            timeout=config.round_timeout_s,
        )
        found.update(rounds_s=report.cpu_s() - since, tasks=grid.train_messages)

    run = simulate(server, parts.app, parts.fleet, executor="serial", progress=False, views=False)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        **found,
        "whole_s": report.cpu_s() - began,
        "trace": run.trace.sha256(),
        "bytes": memory,
    }


def main() -> None:
    """Measures all fleets and publishes the tables."""
    parser = report.parser("cohorts", __doc__)
    parser.add_argument("--clients", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=20)
    settings = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    about = report.machine()
    clients = 20_000 if settings.quick else settings.clients
    rounds = 3 if settings.quick else settings.rounds
    rows: list[dict[str, Any]] = []
    for fleet in FLEETS:
        events = measure(fleet, COMPARED, 2, arrays=False)
        arrays = measure(fleet, COMPARED, 2, arrays=True)
        if events["trace"] != arrays["trace"]:
            raise SystemExit(f"{fleet}: arrays leave another trace than events")
        large = measure(fleet, clients, rounds, arrays=True)
        each = {
            name: 1e6 * found["rounds_s"] / found["tasks"]
            for name, found in (("events_us", events), ("arrays_us", arrays), ("large_us", large))
        }
        rows.append({"fleet": fleet, "clients": clients, "rounds": rounds, **each, **large})
    report.table(
        f"CPU us a task, 2 rounds of {COMPARED:,} clients",
        ("fleet", "events", "arrays", "ratio"),
        [
            (
                row["fleet"],
                f"{row['events_us']:.0f}",
                f"{row['arrays_us']:.1f}",
                f"{row['events_us'] / row['arrays_us']:.0f}",
            )
            for row in rows
        ],
    )
    report.table(
        f"{rounds} rounds of {clients:,} clients as arrays (target {TARGET_S:g} s)",
        ("fleet", "tasks", "CPU us a task", "CPU s, start-up included", "peak, MB"),
        [
            (
                row["fleet"],
                f"{row['tasks']:,}",
                f"{row['large_us']:.1f}",
                f"{row['whole_s']:.1f}",
                f"{row['bytes'] / 1e6:.0f}",
            )
            for row in rows
        ],
    )
    goals = [
        report.Goal(
            f"{row['fleet']}: {clients:,} clients, {rounds} rounds, CPU s",
            row["whole_s"],
            TARGET_S,
            most=True,
        )
        for row in rows
    ]
    report.publish(settings.out, rows, settings, about, () if settings.quick else goals)


if __name__ == "__main__":
    main()
