"""Nodes with quadratic losses and given matrices, times and links: gossip worked out by hand.

Node i's loss is a_i |x - b_i|^2 / 2. Q3 is three of them with a matrix of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from scipy.sparse import csr_array
from stand_ins import Client, FakeExecutor, FixedWork, events, fleet_of

from fl.execution.contract import Result
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.strategies import Decentralized, Exchange, NodeModels
from fl.topologies import Topology
from fl.topologies.weights import Stochasticity
from fl.vectors.layout import Layout

LR = 0.1
A3, B3 = (1.0, 2.0, 3.0), (0.0, 1.0, 4.0)
W3 = ((0.5, 0.5, 0.0), (0.5, 0.25, 0.25), (0.0, 0.25, 0.75))
BEST3 = 7 / 3


@dataclass(frozen=True)
class Given(Topology):
    """Matrices written down: one for each round, over and over again."""

    matrices: tuple[Any, ...] = ()
    kind: Stochasticity = "symmetric"

    @classmethod
    def of(cls, *matrices: Any, kind: Stochasticity = "symmetric") -> Given:
        return cls(len(matrices[0]), matrices, kind)

    @property
    def period(self) -> int:
        return len(self.matrices)

    @property
    def directed(self) -> bool:
        return self.kind != "symmetric"

    @property
    def stochasticity(self) -> Stochasticity:
        return self.kind

    def mixing(self, t: int) -> csr_array:
        return csr_array(np.array(self.matrices[t], dtype=np.float64))


def attacked(method, attack, byzantine, uplink=None):
    """Returns the method with nodes that carry out an attack, over compressed edges or not."""
    layout = Layout.of_vector("w", 2)
    liars = frozenset(byzantine)
    return method.within(Exchange(uplink, attack=attack, byzantine=liars, layout=layout))


Q3 = Given.of(W3)


@dataclass
class Ran:
    """What a run left: the nodes' models after every round, the metrics' facts, and the trace."""

    models: list[np.ndarray]
    times: list[float]
    facts: list[dict[str, float]]
    grid: SimGrid

    def of(self, kind: Event):
        return [e for e in events(self.grid.trace) if e[1] is kind]

    def begun(self) -> dict[tuple[int, int], float]:
        """Returns when each node began to compute, by (node, task)."""
        return {(e[2], e[3]): e[0] for e in self.of(Event.COMPUTE_START)}


def record(x: Any) -> ArrayRecord:
    return ArrayRecord({"w": torch.as_tensor(np.asarray(x, dtype=np.float32))})


def run(
    strategy: Decentralized,
    *,
    a: Sequence[float] = A3,
    b: Any = B3,
    num_rounds: int,
    x0: Any = (0.0,),
    lr: float = LR,
    steps: int = 1,
    step_s: Sequence[float] | Callable[[int, int], float] | None = None,
    clients: Sequence[Client] | None = None,
    change: Callable[[int, np.ndarray], np.ndarray] | None = None,
    of_content: Callable[[int, RecordDict], np.ndarray] | None = None,
    timeout: float = 1e6,
    **fleet: Any,
) -> Ran:
    """Runs a strategy on quadratics.

    Args:
        steps: gradient steps of a task.
        step_s: seconds of a task, by node or by (node, task); 1 unless given.
        change: what a task makes of node and model, instead of gradient steps.
        of_content: what a task makes of node and message, instead of both.
        clients: of the fleet; links that take no time unless given.
    """
    n = strategy.topology.num_nodes
    seconds = step_s if callable(step_s) else lambda i, k: 1.0 if step_s is None else step_s[i]
    curvature, centre = np.asarray(a, np.float32), np.asarray(b, np.float32)

    def answer(request) -> Result:
        i = request.client
        x = request.payload.content["arrays"].to_numpy_ndarrays()[0]
        g = curvature[i] * (x - centre[i]) if change is None else x
        if of_content is not None:
            x = of_content(i, request.payload.content)
        elif change is not None:
            x = change(i, x)
        else:
            for _ in range(steps):
                x = x - np.float32(lr) * curvature[i] * (x - centre[i])
        metrics = MetricRecord({"num-examples": 1, "train-loss": 0.0, "steps": steps})
        gradient = ArrayRecord({"vector": torch.as_tensor(np.asarray(g, dtype=np.float32).ravel())})
        return Result(
            content=RecordDict({"arrays": record(x), "metrics": metrics, "gradient": gradient})
        )

    grid = SimGrid(
        fleet_of(clients or [Client(flops=1.0)] * n, **fleet),
        FakeExecutor(answer),
        planner=lambda request, _: FixedWork(seconds(request.client, request.dispatch)),
    )
    ran = Ran([], [], [], grid)

    def evaluate(t: int, arrays: ArrayRecord) -> None:
        assert isinstance(arrays, NodeModels)
        ran.models.append(np.stack([r.to_numpy_ndarrays()[0] for r in arrays.evaluated()]))
        ran.times.append(grid.clock.now())
        ran.facts.append(arrays.facts)
        np.testing.assert_allclose(
            arrays.to_numpy_ndarrays()[0], ran.models[-1].mean(axis=0), rtol=1e-6, atol=1e-7
        )

    strategy.start(
        grid=grid,
        initial_arrays=record(np.full(2, x0[0]) if len(x0) == 1 else x0),
        num_rounds=num_rounds,
        timeout=timeout,
        train_config=ConfigRecord(),
        evaluate_fn=evaluate,
    )
    return ran
