"""Clients with quadratic losses and given step times, on which every method can be worked out.

Client i's loss is |w - c_i|^2 / 2; q steps of gradient descent of rate lr give
c_i + (1 - lr)^q (w - c_i). A step takes t_i seconds; links take no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from stand_ins import Client, FakeExecutor, FixedWork, events, fleet_of

from fl.execution.contract import Result
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event

LR = 0.1


@dataclass
class Ran:
    """What a run left: the model after every version, with its time, and the trace."""

    models: list[np.ndarray]
    times: list[float]
    grid: SimGrid

    def applied(self) -> list[tuple[float, int, int]]:
        """Returns (time, client, versions since it began) of every update used."""
        return [(e[0], e[2], int(e[5])) for e in self.of(Event.APPLIED, Event.MERGED)]

    def of(self, *kinds: Event):
        return [e for e in events(self.grid.trace) if e[1] in kinds]

    def buffered(self, centres: Sequence[float], k: int, step: Callable[..., float]) -> list[float]:
        """Returns w <- w + step(changes, clients, delays) of every buffer of k, in float64.

        What a client changes is worked out from the model that it was sent, by its delay.
        """
        applied, w = self.applied(), [0.0]
        for i in range(0, len(applied), k):
            _, clients, delays = (np.array(each) for each in zip(*applied[i : i + k], strict=True))
            sent = np.array([w[-1 - tau] for tau in delays])
            w.append(w[-1] + step(LR * (np.array(centres)[clients] - sent), clients, delays))
        return w


def record(w) -> ArrayRecord:
    return ArrayRecord({"w": _torch(w)})


def _torch(w):
    import torch

    return torch.as_tensor(np.asarray(w, dtype=np.float32))


def run(
    strategy: Strategy,
    centres: Sequence[float],
    step_s: Sequence[float] | Callable[[int, int], float],
    *,
    num_rounds: int,
    steps: int = 1,
    w0: float = 0.0,
    timeout: float = 1e6,
    gradient: Callable[[int, np.ndarray], np.ndarray] | None = None,
    lr: float = LR,
    **fleet,
) -> Ran:
    """Runs a strategy; `steps` is K unless the message says otherwise."""
    of_client = step_s if callable(step_s) else lambda client, _: step_s[client]
    slope = gradient or (lambda client, w: w - np.float32(centres[client]))

    def plan(request, _):
        config = request.payload.content["config"]
        asked = int(config.get("local-steps", steps))
        seconds = of_client(request.client, request.dispatch)
        if "elapsed-s" in config:
            done = min(asked, floor(config["elapsed-s"] / seconds + 1e-9))
            return FixedWork(0.0, {"steps": done}, done * seconds)
        return FixedWork(asked * seconds)

    def answer(request) -> Result:
        content = request.payload.content
        asked = int(content["config"].get("local-steps", steps))
        done = asked if request.work is None else request.work["steps"]
        w = content["arrays"].to_numpy_ndarrays()[0]
        for _ in range(done):
            w = w - np.float32(lr) * slope(request.client, w)
        metrics = MetricRecord({"num-examples": 1, "train-loss": 0.0, "steps": done})
        return Result(content=RecordDict({"arrays": record(w), "metrics": metrics}))

    clients = [Client(flops=1.0) for _ in centres]
    grid = SimGrid(fleet_of(clients, **fleet), FakeExecutor(answer), planner=plan)
    ran = Ran([], [], grid)

    def evaluate(version, arrays):
        ran.models.append(arrays.to_numpy_ndarrays()[0])
        ran.times.append(grid.clock.now())

    strategy.start(
        grid=grid,
        initial_arrays=record(np.full(2, w0)),
        num_rounds=num_rounds,
        timeout=timeout,
        train_config=ConfigRecord(),
        evaluate_fn=evaluate,
    )
    return ran
