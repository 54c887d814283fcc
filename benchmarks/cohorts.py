"""Rounds as arrays and event by event: CPU time of a task, side by side, and a million updates.

    python benchmarks/cohorts.py [--quick] [--clients 131072] [--rounds 20] [--out FILE]
                                 [--only train|time|asynchronous]

The logistic model, with faults, trace and the record of the run. FedAvg of all clients that are
there in every round, as arrays, and as messages on the event engine: both must leave the same trace
and model. Event by event fewer clients and rounds will do; then arrays alone have the whole
population.

    uniform       equal devices and links, which share nothing
    mobile        phones that come, go and fail, on a server's link that they share
    always there  the same phones, none of which is ever away

That is of rounds without training, and then of clients that train (SGD, an epoch of some 14 digits,
in programs of up to 64 clients), of which at last there are a million updates, 10,000 a round of a
million clients, in programs of up to 512.

Asynchronous strategies take events: FedAsync and FedCompass, without training, all phones that are
always there in flight, for a growing number of them. Each part is a process of its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from typing import Any

import report

FLEETS = {
    "uniform": ["fleet=uniform"],
    "mobile": ["fleet=mobile"],
    "always there": ["fleet=mobile", "fleet/availability=always"],
}
COMPARED = 5_000
COMPARED_TRAINING = 1_000
POPULATION, A_ROUND, TRAINED = 1_000_000, 10_000, 1_000_000
MAX_BATCH = 2_048
TARGET_S, TARGET_BYTES = 60.0, 1.5e9


def run(
    fleet: str,
    clients: int,
    rounds: int,
    *,
    arrays: bool = True,
    train: bool = False,
    a_round: int | None = None,
    max_batch: int = 64,
    strategy: str = "fedavg",
) -> dict[str, Any]:
    """Returns what a run takes, from the start of the process: CPU s and s, tasks, peak, trace.

    Args:
        fleet: its name.
        clients: of the fleet.
        rounds: of the run, or as many updates of each client.
        arrays: whether these may be arrays.
        train: whether clients train.
        a_round: how many are asked in a round; None is all that are there.
        max_batch: most clients that train together.
        strategy: of the run.
    """
    from flwr.app import Context
    from flwr.serverapp import Grid
    from hydra import compose, initialize_config_module

    from fl import simulate
    from fl.execution import SerialExecutor
    from fl.runs.build import build
    from fl.runs.experiment import app_of
    from fl.runs.recorder import Recorder
    from fl.simulation.grid import SimGrid

    logging.getLogger("flwr").setLevel(logging.ERROR)
    asked, num_rounds = ["strategy.fraction_train=1.0"], rounds
    if a_round is not None:
        asked = [f"strategy.clients={a_round}"]
    if strategy != "fedavg":
        asked, num_rounds = ["strategy.concurrency=null"], rounds * clients
    with initialize_config_module("fl.conf", version_base=None):
        config = compose(
            "config",
            [
                *("data=digits", "partition.num_partitions=100", "model=logistic"),
                *(f"client.train={str(train).lower()}", "executor=serial"),
                *(f"num_clients={clients}", f"strategy={strategy}", *asked, *FLEETS[fleet]),
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
            num_rounds=num_rounds,
            timeout=config.round_timeout_s,
        )
        found.update(rounds_s=report.cpu_s() - since, tasks=grid.train_messages)

    done = simulate(
        server,
        app_of(parts),
        parts.fleet,
        num_partitions=100,
        executor=SerialExecutor(max_batch=max_batch),
        progress=False,
        views=False,
    )
    return {
        **found,
        "us": 1e6 * found["rounds_s"] / found["tasks"],
        "cpu_s": report.cpu_s(),
        "trace": done.trace.sha256(),
        "model": done.summary["model_sha256"],
        "bytes": report.peak_bytes(),
    }


def _send(pipe: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    pipe.send(run(*arguments, **options))


def measure(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Returns what `run` does in a process of its own, and the seconds that this took."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    began = time.perf_counter()
    process = context.Process(target=_send, args=(there, arguments, options))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        raise SystemExit(f"a run of {arguments} {options} failed; see above") from None
    process.join()
    return {"fleet": arguments[0], "clients": arguments[1], **found, **options} | {
        "wall_s": time.perf_counter() - began
    }


def compared(fleet: str, clients: int, *, train: bool) -> dict[str, Any]:
    """Returns a row of two rounds in both ways, after a check that they leave the same behind."""
    events = measure(fleet, clients, 2, arrays=False, train=train)
    arrays = measure(fleet, clients, 2, train=train)
    for what in ("trace", "model"):
        if events[what] != arrays[what]:
            raise SystemExit(f"{fleet}: arrays leave another {what} than events")
    return {**arrays, "events_us": events["us"]}


def main() -> None:
    """Measures what is asked for and publishes the tables."""
    parser = report.parser("cohorts", __doc__)
    parser.add_argument("--clients", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=("train", "time", "asynchronous"))
    settings = parser.parse_args()
    about, quick, only = report.machine(), settings.quick, settings.only
    clients, rounds = (20_000, 3) if quick else (settings.clients, settings.rounds)
    both: list[dict[str, Any]] = []
    large: list[dict[str, Any]] = []
    if only in (None, "time"):
        both += [compared(fleet, COMPARED, train=False) for fleet in FLEETS]
        large += [measure(fleet, clients, rounds) for fleet in FLEETS]
    if only in (None, "train"):
        both += [
            compared(name, COMPARED_TRAINING, train=True) for name in FLEETS if name != "mobile"
        ]
        million = {"train": True, "a_round": A_ROUND, "max_batch": MAX_BATCH}
        long = 2 if quick else TRAINED // A_ROUND
        large += [measure("uniform", POPULATION, long, **million)]
        large += [measure("always there", POPULATION, long, **million)]
    if only in (None, "asynchronous"):
        some = (1_000, 4_000) if quick else (4_096, 32_768)
        for strategy in ("fedasync", "fedcompass"):
            large += [measure("always there", n, 2, strategy=strategy) for n in some]
    report.table(
        "CPU us a task, 2 rounds of all clients in both ways",
        ("fleet", "clients", "train", "events", "arrays", "ratio"),
        [
            (
                row["fleet"],
                f"{row['clients']:,}",
                "yes" if row["train"] else "no",
                f"{row['events_us']:.0f}",
                f"{row['us']:.1f}",
                f"{row['events_us'] / row['us']:.1f}",
            )
            for row in both
        ],
    )
    report.table(
        f"Large ones (target {TARGET_S:g} s and {TARGET_BYTES / 1e9:g} GB, start-up included)",
        ("fleet", "clients", "strategy", "train", "tasks", "us a task", "CPU s", "s", "peak, MB"),
        [
            (
                row["fleet"],
                f"{row['clients']:,}",
                row.get("strategy", "fedavg"),
                "yes" if row.get("train") else "no",
                f"{row['tasks']:,}",
                f"{row['us']:.1f}",
                f"{row['cpu_s']:.1f}",
                f"{row['wall_s']:.1f}",
                f"{row['bytes'] / 1e6:.0f}",
            )
            for row in large
        ],
    )
    goals = []
    for row in () if quick else large:
        name = f"{row.get('strategy', 'fedavg')}, {row['fleet']}, {row['tasks']:,} tasks"
        name += " that train" if row.get("train") else ""
        goals.append(report.Goal(f"{name}, CPU s", row["cpu_s"], TARGET_S, most=True))
        if row.get("train"):
            goals.append(report.Goal(f"{name}, peak, B", row["bytes"], TARGET_BYTES, most=True))
    report.publish(settings.out, [*both, *large], settings, about, goals)


if __name__ == "__main__":
    main()
