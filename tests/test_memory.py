"""The memory of a long run stays flat: 2,000 rounds need what 800 do, but for their record."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fl import simulate
from fl.runs.recorder import Recorder
from fl.runs.simulator import SimulatedRun
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.fleets import uniform
from fl.strategies import Events, FedBuff

ROUNDS = 2000
FIRST = 800
PARAMETERS = 2000
CLIENTS = 2


def make_client() -> ClientApp:
    """A ClientApp that keeps a state as large as the model."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        w = message.content["arrays"]["w"].numpy() + np.float32(0.01)
        context.state["memory"] = ArrayRecord({"w": Array(w)})
        metrics = MetricRecord({"num-examples": 8, "train-loss": 1.0})
        content = RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


class Watch:
    """Counts the objects of this process at two rounds of a run."""

    def __init__(self) -> None:
        self.objects: dict[int, int] = {}

    def __call__(self, server_round: int, arrays: ArrayRecord) -> None:
        if server_round in (FIRST, ROUNDS):
            gc.collect()
            self.objects[server_round] = sys.getallocatedblocks()

    @property
    def objects_a_round(self) -> float:
        """How many a round leaves behind; a model that is kept is three at least."""
        return (self.objects[ROUNDS] - self.objects[FIRST]) / (ROUNDS - FIRST)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Flower logs every round, and pytest keeps what is logged."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(PARAMETERS, dtype=np.float32))})


def run(server: Any) -> SimulatedRun:
    def watched(grid: SimGrid, context: Context, recorder: Recorder) -> None:
        server(grid, recorder)

    fleet = uniform(num_clients=CLIENTS, seed=0)
    return simulate(watched, make_client, fleet, executor="serial", progress=False)  # type: ignore[arg-type]


def test_trace_takes_41_bytes_an_event() -> None:
    trace = Trace()
    before = sys.getsizeof(trace._rows)
    for i in range(100_000):
        trace.record(0.1 * i, Event.DISPATCH, 10_000_000 + i, i, 10**12, 0.5)
    assert (sys.getsizeof(trace._rows) - before) / len(trace) < 41 * 1.2  # it grows in steps
    assert sum(column.nbytes for column in (trace.time, trace.kind, trace.client)) == 17 * 100_000


def test_messages_leave_nothing_behind_while_the_first_is_never_answered() -> None:
    """Its time to live, a day, is not over after the run: it stands before all the others."""
    watch = Watch()

    def server(grid: SimGrid, recorder: Recorder) -> None:
        def message(node: int) -> Message:
            config = ConfigRecord({"round": 1})
            return Message(RecordDict({"arrays": initial(), "c": config}), node, "train", ttl=86400)

        nodes = grid.get_node_ids()
        grid.push_messages([message(nodes[0])])
        for server_round in range(1, ROUNDS + 1):
            assert len(list(grid.send_and_receive([message(node) for node in nodes]))) == CLIENTS
            recorder._pending.clear()  # rows are meant to stay
            recorder.writer.history.clear()
            watch(server_round, initial())

    assert run(server).summary["totals"]["virtual_s"] < 86400
    assert watch.objects_a_round < 0.2


@pytest.mark.parametrize(
    ("strategy", "most"),
    [
        (Events(FedBuff(buffer_size=2)), 0.2),
        # Flower's Result keeps what clients reported in every round.
        pytest.param(
            FedAvg(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0),
            40,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["FedBuff", "FedAvg"],
)
def test_strategy_forgets_its_rounds(strategy: Strategy, most: float) -> None:
    watch = Watch()

    def server(grid: SimGrid, recorder: Recorder) -> None:
        strategy.start(
            grid=grid, initial_arrays=initial(), num_rounds=ROUNDS, timeout=600, evaluate_fn=watch
        )

    run(server)
    assert watch.objects_a_round < most
