"""Islands that train with outer steps on digits, and the same written step by step with torch.

The references use torch's own optimizers on all of a client's examples at every step, in the order
of the data, so that nothing depends on how examples are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord

from fl import simulate
from fl.clients import AdamW, Sgd, TrainingApp
from fl.clients.app.island import Fragments
from fl.data import federate, load_digits, partition
from fl.flower.records import from_record
from fl.models import MLP, build, per_example_loss
from fl.runs.simulator import SimulatedRun
from fl.simulation.world.faults import Faults, TaskFaults
from fl.simulation.world.fleets import uniform
from fl.strategies import OuterRule, OuterSgd, OuterSteps
from fl.strategies.drivers.exchange import Exchange
from fl.vectors.layout import Layout

AVERAGE = OuterSgd(lr=1.0, momentum=0.0, nesterov=False)
PLAIN = OuterSgd(lr=0.5, momentum=0.0, nesterov=False)
SGD = Sgd(lr=0.2)
ADAMW = AdamW(lr=0.01, keep_moments=True, clip_norm=1.0)


def data_of(partitions):
    return federate(load_digits, partial(partition.iid, num_partitions=partitions, seed=0))


DATA = {n: data_of(n) for n in (1, 2, 3, 4)}
MODEL = partial(build, partial(MLP, hidden=(6, 5)), (1, 8, 8), 10, 0)
LAYOUT = Layout.of(MODEL())
CUT = Fragments.of(LAYOUT, 3)


def app_of(strategy, data, rule=SGD, batch_size=None, **more):
    island = None
    if isinstance(strategy, OuterSteps):
        island, _ = strategy.ends(strategy.exchange.uplink, None)
    return TrainingApp(
        MODEL,
        data,
        rule,
        batch_size=batch_size,
        local_epochs=None,
        local_steps=1,
        shuffle=batch_size is not None,
        uplink=island,
        downlink=island,
        **more,
    )


@dataclass
class Done:
    """A run, the models evaluated in it, shape (versions, d), and when, s."""

    run: SimulatedRun
    rows: np.ndarray
    times: list[float]
    result: Any

    @property
    def summary(self):
        return self.run.summary


def driven(
    rule, *, workers=2, compressor=None, attack=None, byzantine=(), strategy=OuterSteps, **of
):
    """Returns the strategy of a rule, within an exchange; `workers_` is its own `workers`."""
    if "workers_" in of:
        of["workers"] = of.pop("workers_")
    exchange = Exchange(
        uplink=compressor,
        attack=attack,
        byzantine=frozenset(byzantine),
        num_clients=workers,
        seed=0,
        layout=LAYOUT,
    )
    return strategy(rule, **of).within(exchange)


def run(
    strategy,
    rounds,
    *,
    workers=2,
    data=None,
    fleet=None,
    executor="serial",
    timeout=1e6,
    compressor=None,
    **app,
):
    """Runs a strategy, or a rule of outer steps, among workers."""
    data = data or DATA[workers]
    if isinstance(strategy, OuterRule):
        strategy = driven(strategy, workers=workers, compressor=compressor)
    rows, times, results = [], [], []

    def server(grid, context, recorder):
        def evaluate(version, arrays):
            rows.append(from_record(LAYOUT, arrays))
            times.append(grid.clock.now())

        initial = ArrayRecord(MODEL().state_dict())
        result = strategy.start(
            grid, initial, num_rounds=rounds, timeout=timeout, evaluate_fn=evaluate
        )
        recorder.final(result.arrays)
        results.append(result)

    done = simulate(
        server,
        app_of(strategy, data, **app),
        fleet or uniform(num_clients=workers, seed=0),
        num_partitions=data.num_partitions,
        executor=executor,
        progress=False,
    )
    return Done(done, np.array(rows), times, results[0])


def of(trace, kind):
    table = trace.table().to_pylist()
    return [row for row in table if row["kind"] == kind.name.lower()]


class Reference:
    """A worker that trains with torch on all of its examples; parameters as one flat vector."""

    def __init__(self, data, client, rule):
        self.model = MODEL()
        self.x, self.y = (torch.as_tensor(part) for part in data.client(client))
        self.rule, self.clip = rule, rule.clip_norm
        self.forget()

    def forget(self):
        rule = self.rule
        if isinstance(rule, AdamW):
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), rule.lr, (rule.beta1, rule.beta2), rule.eps, 0.01
            )
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters(), rule.lr)

    @property
    def w(self):
        with torch.no_grad():
            return torch.nn.utils.parameters_to_vector(self.model.parameters()).double().numpy()

    @w.setter
    def w(self, value):
        vector = torch.tensor(value, dtype=torch.float32)
        torch.nn.utils.vector_to_parameters(vector, self.model.parameters())

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            per_example_loss(self.model(self.x), self.y).mean().backward()
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()


class Nesterov:
    """torch's SGD on one vector."""

    def __init__(self, theta, rule):
        self.parameter = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.optimizer = torch.optim.SGD(
            [self.parameter], rule.lr, rule.momentum, nesterov=rule.nesterov
        )

    @property
    def theta(self):
        return self.parameter.detach().numpy().copy()

    def step(self, delta):
        self.parameter.grad = torch.tensor(delta)
        self.optimizer.step()


def references(workers, rule):
    return [Reference(DATA[workers], client, rule) for client in range(workers)]


class At(Faults):
    """Crashes given tasks, (client, dispatch)."""

    tasks = ()

    def draw(self, seed, client, dispatch):
        return TaskFaults(crash_at=0.5 if (client, dispatch) in self.tasks else None)


def crashes(*tasks):
    faults = At(detection_s=0.0)
    object.__setattr__(faults, "tasks", tasks)
    return faults


def crashing(*tasks, workers=2):
    return uniform(num_clients=workers, seed=0, faults=crashes(*tasks))
