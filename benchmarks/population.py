"""A million clients: time and memory of building the fleet, of rounds, and asynchronously.

    python benchmarks/population.py [--quick] [--clients 100000 1000000] [--out FILE]

Three parts, each in a process of its own, for populations of different size on the `mobile` fleet:

    build   make the fleet
    rounds  stock FedAvg, 1,000 clients a round that train logistic regression, in one process
    async   10,000 tasks in flight: a loop looks once a virtual second what has arrived, and pushes
            as many again for every hundred; with a no-op executor, so that what is measured is the
            simulator

Figures of the simulator: tasks per second of host time, and the peak of the whole process's memory
(imports of torch, Flower and SciPy are some 400 MB of it). What may grow with the population is
columns of numbers, and what may grow with the run is the clients touched; the two `after` columns
show the memory after a tenth of the rounds and at the end.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from functools import partial
from typing import Any

import report

IN_FLIGHT = 10_000
SAMPLED = 1_000
EXAMPLES = 8
LIMIT_S, LIMIT_BYTES = 10.0, 3e9


def resident_bytes() -> int:
    """Returns how much memory this process has resident now."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def make_fleet(clients: int) -> Any:
    """Returns phones that come, go and fail."""
    from fl.simulation.world.fleets import mobile

    return mobile(clients, seed=0)


def build(clients: int, size: int) -> dict[str, float]:
    """Returns how long building the fleet takes, and what it adds to the memory."""
    before = resident_bytes()
    began = time.perf_counter()
    fleet = make_fleet(clients)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": resident_bytes() - before, "clients": len(fleet)}


def make_app(clients: int) -> Any:
    """Returns a ClientApp whose clients have few examples each, drawn from a common pool."""
    import numpy as np

    from fl.clients import Sgd, TrainingApp
    from fl.data import Examples, FederatedData, Partitions
    from fl.models import LogisticRegression

    rng = np.random.default_rng(0)
    partitions = min(clients, 10_000)
    n = partitions * EXAMPLES
    examples = Examples(rng.standard_normal((n, 60), dtype=np.float32), rng.integers(0, 10, n))
    data = FederatedData(
        name="random",
        train=examples,
        test=examples,
        partitions=Partitions.contiguous([EXAMPLES] * partitions),
        num_classes=10,
        input_shape=(60,),
    )
    return TrainingApp(
        partial(LogisticRegression, (60,), 10), data, Sgd(lr=0.1), batch_size=EXAMPLES
    )


def rounds(clients: int, size: int) -> dict[str, float]:
    """Returns client updates per second of so many rounds, and the memory."""
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    from fl.execution import SerialExecutor
    from fl.models import LogisticRegression
    from fl.runs.simulator import simulate

    fleet, app = make_fleet(clients), make_app(clients)
    seen = {"began": 0.0, "early": 0.0, "updates": 0.0}

    def evaluate(server_round: int, arrays: Any) -> None:
        if server_round == 1:  # the first round makes what the others reuse
            seen["began"] = report.host_s()
        if server_round == max(1, size // 10):
            seen["early"] = resident_bytes()

    def server(grid: Any, context: Any, recorder: Any) -> None:
        FedAvg(
            fraction_train=SAMPLED / clients, min_train_nodes=SAMPLED, fraction_evaluate=0.0
        ).start(
            grid=grid,
            initial_arrays=ArrayRecord(LogisticRegression((60,), 10).state_dict()),
            num_rounds=size,
            timeout=600.0,
            evaluate_fn=evaluate,
        )
        seen["updates"] = grid.client_updates
        seen["touched"] = len(grid._mailbox.dispatches)

    simulate(
        server,
        app,
        fleet,
        num_partitions=app.data.num_partitions,
        executor=SerialExecutor(),
        progress=False,
    )
    seconds = report.host_s() - seen["began"]
    return {
        "per_s": SAMPLED * (size - 1) / seconds,
        "touched": seen["touched"],
        "early": seen["early"],
        "late": resident_bytes(),
    }


def asynchronous(clients: int, size: int) -> dict[str, float]:
    """Returns tasks per second with 10,000 in flight, until so many have ended, and the memory."""
    import random

    import event_core
    from flwr.app import ConfigRecord, Message, RecordDict

    from fl.execution.garbage import quick_garbage_collection

    fleet = make_fleet(clients)
    sim = event_core.make_grid(fleet, event_core.Ready(event_core.reply_content()))
    rng = random.Random(0)
    model = event_core.model_record()
    flight: dict[str, None] = {}
    touched: set[int] = set()
    done, began, early = 0, 0.0, 0.0

    def push(count: int) -> None:
        content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": 1})})
        nodes = rng.sample(sim.get_node_ids(), count)
        touched.update(nodes)
        # A phone that has left answers to nobody: its message expires within the hour.
        flight.update(
            dict.fromkeys(
                sim.push_messages(Message(content, node, "train", ttl=3600.0) for node in nodes)
            )
        )

    with quick_garbage_collection():
        push(IN_FLIGHT)
        began = time.perf_counter()
        while done < size:
            sim.clock.sleep(1.0)
            replies = sim.pull_messages(flight.keys())
            for reply in replies:
                del flight[reply.metadata.reply_to_message_id]
            done += len(replies)
            # As a buffered strategy: a new version of the model for each hundred replies.
            if IN_FLIGHT - len(flight) >= 100:
                push(IN_FLIGHT - len(flight))
            if not early and done >= size // 10:
                early = resident_bytes()
        seconds = time.perf_counter() - began
    return {
        "per_s": done / seconds,
        "touched": len(touched),
        "early": early,
        "late": resident_bytes(),
    }


PARTS = {"build": build, "rounds": rounds, "async": asynchronous}


def _measure(part: str, clients: int, size: int, pipe: Any) -> None:
    import flwr.app  # sets its logger's level

    logging.getLogger(flwr.__name__).setLevel(logging.ERROR)
    figures = PARTS[part](clients, size)
    pipe.send({**figures, "peak": report.peak_bytes()})


def measure(part: str, clients: int, size: int) -> dict[str, Any]:
    """Returns the figures of one part, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(part, clients, size, there))
    process.start()
    there.close()
    try:
        figures = here.recv()
    except EOFError:
        raise SystemExit(f"{part} with {clients} clients failed; see above") from None
    process.join()
    return {"part": part, "clients": clients, **figures}


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("population", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    size = {
        "build": 0,
        "rounds": 4 if arguments.quick else 20,
        "async": 5_000 if arguments.quick else 40_000,
    }
    about = report.machine()
    rows = [measure(part, n, size[part]) for part in PARTS for n in arguments.clients]
    report.table(
        f"Building the fleet; target: at most {LIMIT_S:g} s",
        ("clients", "s", "MB"),
        (
            (f"{row['clients']:,}", f"{row['seconds']:.2f}", f"{row['bytes'] / 1e6:.0f}")
            for row in rows
            if row["part"] == "build"
        ),
    )
    first: dict[str, float] = {}
    running = [row for row in rows if row["part"] != "build"]
    for row in running:
        row["cost"] = first.setdefault(row["part"], row["per_s"]) / row["per_s"]
    report.table(
        f"Running: {SAMPLED:,} a round, and {IN_FLIGHT:,} in flight. Targets: cost of a task "
        f"within 2 of the smallest population's, peak memory at most {LIMIT_BYTES / 1e9:g} GB",
        ("", "clients", "tasks/s", "cost", "touched", "MB after 1/10", "MB after all", "peak MB"),
        (
            (
                row["part"],
                f"{row['clients']:,}",
                f"{row['per_s']:,.0f}",
                f"{row['cost']:.2f}",
                f"{row['touched']:,}",
                f"{row['early'] / 1e6:.0f}",
                f"{row['late'] / 1e6:.0f}",
                f"{row['peak'] / 1e6:.0f}",
            )
            for row in running
        ),
    )
    goals = [
        report.Goal(f"{row['clients']:,} clients: building, s", row["seconds"], LIMIT_S, most=True)
        for row in rows
        if row["part"] == "build"
    ]
    for row in running:
        of = f"{row['part']}, {row['clients']:,} clients"
        cost = report.Goal(f"{of}: cost of the fewest's", row["cost"], 2.0, most=True)
        goals += [cost, report.Goal(f"{of}: peak, B", row["peak"], LIMIT_BYTES, most=True)]
    report.publish(arguments.out, rows, arguments, about, goals)


if __name__ == "__main__":
    main()
