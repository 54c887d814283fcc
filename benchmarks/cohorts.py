"""Rounds as arrays and event by event: CPU time of a task, side by side, and a million updates.

    python benchmarks/cohorts.py [--quick] [--clients 131072] [--rounds 20] [--out FILE]
                                 [--only train|time]

FedAvg of the logistic model, all clients that are there in every round, with faults, trace and the
record of the run: as arrays, and as messages on the event engine. Both must leave the same
trace. Event by event fewer clients and rounds will do; then arrays alone have the whole population.

    uniform       equal devices and links, which share nothing
    mobile        phones that come, go and fail, on a server's link that they share
    always there  the same phones, none of which is ever away

That is of rounds without training. With it (SGD, an epoch of some 14 digits, in programs of up to
64 clients) 1,000 of the same clients train twice in both ways; and as arrays a million of a million
clients, 10,000 in a round, on `uniform`.
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
from fl.execution import SerialExecutor
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.recorder import Recorder
from fl.simulation.grid import SimGrid

FLEETS = {
    "uniform": ["fleet=uniform"],
    "mobile": ["fleet=mobile"],
    "always there": ["fleet=mobile", "fleet/availability=always"],
}
COMPARED = 5_000
COMPARED_TRAINING = 1_000
POPULATION, A_ROUND, TRAINED = 1_000_000, 10_000, 1_000_000
MAX_BATCH = 2_048
TARGET_S = 60.0


def measure(
    fleet: str,
    clients: int,
    rounds: int,
    *,
    arrays: bool,
    train: bool = False,
    a_round: int | None = None,
    max_batch: int = 64,
) -> dict[str, Any]:
    """Returns what a run takes: CPU s of it and of its rounds, tasks, peak of memory, trace.

    Args:
        fleet: its name.
        clients: of the fleet.
        rounds: of the run.
        arrays: whether these may be arrays.
        train: whether clients train.
        a_round: how many are asked in a round; None is all that are there.
        max_batch: most clients that train together.
    """
    asked = ["strategy.fraction_train=1.0"]
    if a_round is not None:
        asked = [f"strategy.clients={a_round}"]
    began = report.cpu_s()
    with initialize_config_module("fl.conf", version_base=None):
        config = compose(
            "config",
            [
                *("data=digits", "partition.num_partitions=100", "model=logistic"),
                *(f"client.train={str(train).lower()}", "executor=serial"),
                *(f"num_clients={clients}", "strategy=fedavg", *asked, *FLEETS[fleet]),
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

    run = simulate(
        server,
        app_of(parts),
        parts.fleet,
        num_partitions=100,
        executor=SerialExecutor(max_batch=max_batch),
        progress=False,
        views=False,
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        **found,
        "whole_s": report.cpu_s() - began,
        "trace": run.trace.sha256(),
        "model": run.summary["model_sha256"],
        "bytes": memory,
    }


def main() -> None:
    """Measures all fleets and publishes the tables."""
    parser = report.parser("cohorts", __doc__)
    parser.add_argument("--clients", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=("train", "time"), help="with training, or without")
    settings = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    about = report.machine()
    clients = 20_000 if settings.quick else settings.clients
    rounds = 3 if settings.quick else settings.rounds
    rows: list[dict[str, Any]] = []
    for fleet in () if settings.only == "train" else FLEETS:
        events = measure(fleet, COMPARED, 2, arrays=False)
        arrays = measure(fleet, COMPARED, 2, arrays=True)
        _check(fleet, events, arrays)
        large = measure(fleet, clients, rounds, arrays=True)
        each = {
            name: 1e6 * found["rounds_s"] / found["tasks"]
            for name, found in (("events_us", events), ("arrays_us", arrays), ("large_us", large))
        }
        rows.append({"fleet": fleet, "clients": clients, "rounds": rounds, **each, **large})
    goals = show(rows, clients, rounds) if rows else []
    if settings.only != "time":
        trained = [training(fleet, quick=settings.quick) for fleet in ("uniform", "always there")]
        rows += trained
        goals += show_training(trained)
    report.publish(settings.out, rows, settings, about, () if settings.quick else goals)


def show(rows: list[dict[str, Any]], clients: int, rounds: int) -> list[report.Goal]:
    """Prints the tables of rounds without training; returns what has a goal."""
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
    return [
        report.Goal(
            f"{row['fleet']}: {clients:,} clients, {rounds} rounds, CPU s",
            row["whole_s"],
            TARGET_S,
            most=True,
        )
        for row in rows
    ]


def _check(fleet: str, events: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Ends the script if both ways do not leave the same behind."""
    for what in ("trace", "model"):
        if events[what] != arrays[what]:
            raise SystemExit(f"{fleet}: arrays leave another {what} than events")


def training(fleet: str, *, quick: bool) -> dict[str, Any]:
    """Returns a row of clients that train: in both ways, and on `uniform` many as arrays."""
    measure(fleet, 100, 1, arrays=True, train=True)  # what is made once in a process
    events = measure(fleet, COMPARED_TRAINING, 2, arrays=False, train=True)
    arrays = measure(fleet, COMPARED_TRAINING, 2, arrays=True, train=True)
    _check(fleet, events, arrays)
    row = {
        "fleet": fleet,
        "training": True,
        "events_us": 1e6 * events["rounds_s"] / events["tasks"],
        "arrays_us": 1e6 * arrays["rounds_s"] / arrays["tasks"],
    }
    if fleet != "uniform":
        return row
    rounds = 2 if quick else TRAINED // A_ROUND
    return row | measure(
        fleet,
        POPULATION,
        rounds,
        arrays=True,
        train=True,
        a_round=A_ROUND,
        max_batch=MAX_BATCH,
    )


def show_training(rows: list[dict[str, Any]]) -> list[report.Goal]:
    """Prints the tables of clients that train; returns what has a goal."""
    report.table(
        f"CPU us an update, 2 rounds of {COMPARED_TRAINING:,} clients that train",
        ("fleet", "events", "arrays", "ratio"),
        [
            (
                row["fleet"],
                f"{row['events_us']:.0f}",
                f"{row['arrays_us']:.0f}",
                f"{row['events_us'] / row['arrays_us']:.2f}",
            )
            for row in rows
        ],
    )
    large = [row for row in rows if "whole_s" in row]
    report.table(
        f"{A_ROUND:,} of {POPULATION:,} clients in a round (target {TARGET_S:g} s)",
        ("fleet", "updates", "CPU us an update", "CPU s, start-up included", "peak, MB"),
        [
            (
                row["fleet"],
                f"{row['tasks']:,}",
                f"{1e6 * row['rounds_s'] / row['tasks']:.0f}",
                f"{row['whole_s']:.1f}",
                f"{row['bytes'] / 1e6:.0f}",
            )
            for row in large
        ],
    )
    return [
        report.Goal(f"{row['tasks']:,} updates that train, CPU s", row["whole_s"], TARGET_S, True)
        for row in large
    ]


if __name__ == "__main__":
    main()
