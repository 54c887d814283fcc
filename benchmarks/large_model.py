"""One model of 100 million parameters, 8 clients: peak memory in copies of the model.

    python benchmarks/large_model.py [--quick] [--out FILE]

Every client trains two steps, in one process (`executor=serial`), for three rounds with all 8
clients in flight, by stock FedAvg and by our `Rounds` of FedAvg; and asynchronously with 2
in flight, by a loop that mixes each reply into the model. The peak is what the process had resident
at most, less what it had before the first model was made. --quick takes a quarter of the
parameters.

A copy is 4 bytes times the number of parameters. Target: at most 2 copies and one for each client
in flight.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import report

CLIENTS = 8
ROUNDS = 3
BATCH = 4
WIDTHS = {"full": (8192, 8192, 3180), "quick": (6000, 4000)}


def make_model(size: str) -> Any:
    """Returns an MLP; "full" has 100 million parameters."""
    import torch

    from fl.models import MLP

    torch.manual_seed(0)
    return MLP((784,), 10, hidden=WIDTHS[size])


def make_app(size: str) -> Any:
    """Returns a ClientApp whose clients have 8 examples each."""
    import numpy as np

    from fl.clients import Sgd, TrainingApp
    from fl.data import Examples, FederatedData, Partitions

    n = 2 * BATCH * CLIENTS
    rng = np.random.default_rng(0)
    examples = Examples(rng.standard_normal((n, 784), dtype=np.float32), rng.integers(0, 10, n))
    data = FederatedData(
        name="random",
        train=examples,
        test=examples,
        partitions=Partitions.contiguous([2 * BATCH] * CLIENTS),
        num_classes=10,
        input_shape=(784,),
    )
    return TrainingApp(partial(make_model, size), data, Sgd(lr=0.01), batch_size=BATCH)


def initial_arrays(size: str) -> Any:
    """Returns the initial model's record."""
    from flwr.app import ArrayRecord

    return ArrayRecord(make_model(size).state_dict())


def run_strategy(size: str, grid: Any, *, ours: bool) -> None:
    """Runs three rounds of a strategy over all clients."""
    from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

    from fl.strategies import FedAvg, Rounds

    common: dict[str, Any] = {"fraction_train": 1.0, "fraction_evaluate": 0.0}
    strategy = Rounds(FedAvg(), **common) if ours else FlowersFedAvg(**common)
    strategy.start(grid=grid, initial_arrays=initial_arrays(size), num_rounds=ROUNDS, timeout=1e9)


def run_mixing(size: str, grid: Any, *, in_flight: int = 2) -> None:
    """Mixes each reply into the model as it comes; as many in flight as are told."""
    from flwr.app import ConfigRecord, Message, RecordDict

    from fl.flower.records import from_record, layout_of, to_record

    arrays = initial_arrays(size)
    layout = layout_of(arrays)
    flight: set[str] = set()
    sent = 0
    while sent < ROUNDS * CLIENTS or flight:
        while len(flight) < in_flight and sent < ROUNDS * CLIENTS:
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
            node = grid.get_node_ids()[sent % CLIENTS]
            flight.update(grid.push_messages([Message(content, node, "train")]))
            del content
            sent += 1
        for reply in grid.pull_messages(flight):
            flight.remove(reply.metadata.reply_to_message_id)
            mixed = from_record(layout, reply.content["arrays"]) + from_record(layout, arrays)
            del reply
            mixed *= 0.5
            arrays = to_record(layout, mixed)


CASES: dict[str, tuple[Callable[..., Any], int]] = {
    "stock FedAvg": (partial(run_strategy, ours=False), CLIENTS),
    "Rounds": (partial(run_strategy, ours=True), CLIENTS),
    "mixing": (run_mixing, 2),
}


def _measure(case: str, size: str, pipe: Any) -> None:
    import flwr.app
    import torch._functorch.apis  # what training imports is not the model's memory

    from fl.execution import SerialExecutor
    from fl.runs.simulator import simulate
    from fl.simulation.world.fleets import uniform

    logging.getLogger(flwr.__name__).setLevel(logging.ERROR)
    assert torch._functorch.apis
    run, _ = CASES[case]
    before = report.peak_bytes()
    began = time.perf_counter()
    simulate(
        lambda grid, context, recorder: run(size, grid),
        make_app(size),
        uniform(num_clients=CLIENTS, seed=0, speed_spread=2.0),
        executor=SerialExecutor(),
        progress=False,
    )
    parameters = sum(p.numel() for p in make_model(size).parameters())
    pipe.send((parameters, report.peak_bytes() - before, time.perf_counter() - began))


def measure(case: str, size: str) -> dict[str, Any]:
    """Returns one case's peak, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(case, size, there))
    process.start()
    there.close()
    try:
        parameters, peak, seconds = here.recv()
    except EOFError:
        raise SystemExit(f"{case} failed; see above") from None
    process.join()
    return {
        "case": case,
        "parameters": parameters,
        "in_flight": CASES[case][1],
        "peak_bytes": peak,
        "copies": peak / (4 * parameters),
        "allowed": 2 + CASES[case][1],
        "seconds": seconds,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("large_model", __doc__)
    arguments = parser.parse_args()
    about = report.machine()
    rows = [measure(case, "quick" if arguments.quick else "full") for case in CASES]
    report.table(
        f"Peak memory with {rows[0]['parameters']:,} parameters; target: at most 2 copies and one "
        "for each client in flight",
        ("", "in flight", "peak GB", "copies", "allowed", "s"),
        (
            (
                row["case"],
                row["in_flight"],
                f"{row['peak_bytes'] / 1e9:.2f}",
                f"{row['copies']:.1f}",
                row["allowed"],
                f"{row['seconds']:.0f}",
            )
            for row in rows
        ),
    )
    goals = [
        report.Goal(f"{row['case']}: copies in the peak", row["copies"], row["allowed"], most=True)
        for row in rows
    ]
    report.publish(arguments.out, rows, arguments, about, goals)


if __name__ == "__main__":
    main()
