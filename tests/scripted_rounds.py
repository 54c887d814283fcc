"""Rounds of clients with given times and answers, on the simulator's grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from stand_ins import FakeExecutor, FixedWork

from fl.execution.contract import Result
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.fleets import durations

START = np.zeros(2, dtype=np.float32)


class Seconds:
    """Clients with given task times."""

    def __init__(self, seconds):
        self.seconds = seconds

    def of_clients(self, seed, purpose, num_clients):
        return np.array(self.seconds, dtype=np.float64)


def answer(request):
    """Client i returns w + i, of i + 1 examples; its loss is i, its accuracy i / 100."""
    i = request.client
    loss = float(i)
    metrics = {"num-examples": i + 1, "train-loss": loss, "loss": loss, "accuracy": i / 100}
    content = {"metrics": MetricRecord(metrics)}
    if request.message_type == "train":
        w = request.payload.content["arrays"]["w"].numpy()
        content["arrays"] = ArrayRecord({"w": Array((w + i).astype(np.float32))})
    return Result(content=RecordDict(content))


def run(
    strategy,
    seconds,
    *,
    rounds=1,
    task=None,
    faults=None,
    seed=0,
    availability=None,
    answer=answer,
    measured=None,
    battery=None,
):
    trace = Trace()
    n = seconds if isinstance(seconds, int) else len(seconds)
    client = None if isinstance(seconds, int) else Seconds(seconds)
    grid = SimGrid(
        replace(
            durations(
                n,
                seed,
                task_slowdown=task,
                client_slowdown=client,
                faults=faults,
                availability=availability,
            ),
            battery=battery,
        ),
        FakeExecutor(answer),
        planner=lambda *_: FixedWork(1.0),
        trace=trace,
        on_measured=measured,
    )
    times, models = [], []

    def evaluate(version, arrays):
        times.append(grid.clock.now())
        models.append(arrays["w"].numpy().copy())

    arrays = ArrayRecord({"w": Array(START)})
    strategy.start(grid, arrays, num_rounds=rounds, timeout=1e4, evaluate_fn=evaluate)
    return grid, trace, times, models


def clients(trace, *kinds):
    return [c for kind, c in zip(trace.kind, trace.client, strict=True) if Event(kind) in kinds]
