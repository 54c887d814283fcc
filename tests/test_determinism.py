"""One configuration and one seed give one trace and one model, whatever runs the clients."""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from hydra import compose, initialize_config_module

from fl import simulate
from fl.execution import Executor, RayExecutor, SerialExecutor
from fl.experiment import build
from fl.simulation.faults import Faults
from fl.simulation.fleets import mobile
from fl.simulator import SimulatedRun

Hashes = tuple[str, str]

# Phones that go offline, drop out, crash and lose messages, so that every way a task can end occurs
# while states change; clients keep Adam's moments, so that a lost state shows in the model.
OURS = [
    "data=digits",
    "model=mlp",
    "model.hidden=[16]",
    "client=adamw",
    "client.rule.keep_moments=true",
    "client.batch_size=8",
    "fleet=mobile",
    "fleet/availability=exponential",
    "fleet.availability.mean_on_s=0.3",
    "fleet.availability.mean_off_s=0.1",
    "fleet.faults.dropout=0.1",
    "fleet.faults.crash=0.1",
    "fleet.faults.message_loss=0.05",
    "fleet.faults.detection_s=0.05",
    "strategy.fraction_train=0.5",
    "strategy.min_train_nodes=2",
    "strategy.min_available_nodes=2",
    "num_clients=24",
]
ROUNDS = 8


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    """One Ray for all tests of this file, with more CPUs than there are: executors attach to it."""
    import ray

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def ours(executor: Executor, seed: int = 0) -> SimulatedRun:
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [*OURS, f"seed={seed}"])
    parts = build(config)
    initial = ArrayRecord(parts.model().state_dict())

    def server(grid: Grid, _: Context, recorder: object) -> None:
        result = parts.strategy.start(
            grid=grid, initial_arrays=initial, num_rounds=ROUNDS, timeout=2.0
        )
        recorder.final(result.arrays)

    return simulate(
        server, parts.app, parts.fleet, seed=seed, executor=executor, progress=False
    )


def make_foreign_client() -> ClientApp:
    """A ClientApp that draws from every global generator, sleeps and counts in its state."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        weights = message.content["arrays"]["w"].numpy().copy()
        weights += np.random.normal(size=weights.shape)  # noqa: NPY002
        weights[0] += random.random()
        weights += torch.randn(weights.shape, dtype=torch.float64).numpy()
        tasks = 1
        if "tasks" in context.state:
            context.state["tasks"]["count"] += 1  # in place, as apps do
            tasks = context.state["tasks"]["count"]
        else:
            context.state["tasks"] = MetricRecord({"count": 1})
        time.sleep(random.expovariate(10.0))
        if random.random() < 0.1:
            raise RuntimeError("every tenth task of this app fails")
        weights *= 1 + 0.1 * tasks
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(weights)}),
                "metrics": MetricRecord({"num-examples": tasks, "norm": float(abs(weights).max())}),
            }
        )
        return Message(content, reply_to=message)

    return app


def foreign(executor: Executor, seed: int = 0) -> SimulatedRun:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        noise = np.random.normal(size=5)  # noqa: NPY002
        FedAvg(fraction_train=0.5, fraction_evaluate=0.0).start(
            grid=grid,
            initial_arrays=ArrayRecord({"w": Array(noise)}),
            num_rounds=ROUNDS,
            timeout=3.0,
            train_config=ConfigRecord({"lr": random.random()}),
        )

    faults = Faults(dropout=0.1, crash=0.1, message_loss=0.05, detection_s=0.5)
    fleet = mobile(num_clients=24, seed=seed, faults=faults)
    return simulate(
        app, make_foreign_client, fleet, seed=seed, executor=executor, progress=False
    )


def hashes(run: SimulatedRun) -> Hashes:
    return run.summary["trace_sha256"], run.summary["model_sha256"]


@pytest.fixture(scope="module")
def serial_ours() -> SimulatedRun:
    return ours(SerialExecutor())


@pytest.fixture(scope="module")
def serial_foreign() -> SimulatedRun:
    return foreign(SerialExecutor())


def test_runs_compared_here_have_faults_of_every_kind(
    serial_ours: SimulatedRun, serial_foreign: SimulatedRun
) -> None:
    # Otherwise the tests below would prove little.
    print(serial_ours.summary["faults"], serial_ours.summary["totals"], serial_ours.summary["extra"])
    print(serial_foreign.summary["faults"], serial_foreign.summary["totals"])
