"""One configuration and one seed give one trace and one model, whatever runs the clients."""

import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from hydra import compose, initialize_config_module

from fl import simulate
from fl.execution import Executor, RayExecutor, SerialExecutor, cluster
from fl.execution.contract import Request, Result
from fl.flower.records import from_record, to_record
from fl.runs.build import build
from fl.runs.recorder import Recorder
from fl.runs.simulator import SimulatedRun
from fl.simulation.world.availability import ExponentialOnOff
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleets import mobile

Hashes = tuple[str, str]

# Phones that go offline, drop out, crash and lose messages, so that every way a task can end occurs
# while states change; clients keep Adam's moments and the last layer, so that a lost state shows in
# the model.
OURS = [
    "data=digits",
    "model=mlp",
    "model.hidden=[16]",
    "client=adamw",
    "client.rule.keep_moments=true",
    "client/local_layers=last",
    "target=null",
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
    cluster._start(8)
    yield
    cluster.disconnect()


def ours(executor: Executor, seed: int = 0) -> SimulatedRun:
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [*OURS, f"seed={seed}"])
    parts = build(config)
    initial = parts.initial()

    def server(grid: Grid, _: Context, recorder: Recorder) -> None:
        result = parts.strategy.start(
            grid=grid, initial_arrays=initial, num_rounds=ROUNDS, timeout=2.0
        )
        recorder.final(result.arrays)

    return simulate(server, parts.app, parts.fleet, seed=seed, executor=executor, progress=False)


def outer(executor: Executor) -> SimulatedRun:
    """Streaming DiLoCo in four bits, with workers that crash and come back."""
    overrides = [
        "data=digits",
        "model=mlp",
        "model.hidden=[8,8]",
        "strategy=streaming_diloco",
        "compressor=e3m0",
        "strategy.rule.inner_steps=6",
        "strategy.rule.fragments=2",
        "client.batch_size=8",
        "fleet=datacenters",
        "fleet.jitter=0.3",
        "fleet.faults.crash=0.1",
        "num_clients=4",
    ]
    with initialize_config_module("fl.conf", version_base=None):
        parts = build(compose("config", overrides))

    def server(grid: Grid, _: Context, recorder: Recorder) -> None:
        result = parts.strategy.start(grid=grid, initial_arrays=parts.initial(), num_rounds=ROUNDS)
        recorder.final(result.arrays)

    return simulate(server, parts.app, parts.fleet, seed=0, executor=executor, progress=False)


def asynchronous(executor: Executor) -> SimulatedRun:
    """Mixes each reply into the model as it comes, and sends the result to the next client."""
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [*OURS, "seed=0"])
    parts = build(config)

    def server(grid: Grid, _: Context, recorder: Recorder) -> None:
        arrays, layout = parts.initial(), parts.app.layout
        flight: dict[str, None] = {}
        order = iter(np.random.default_rng(0).integers(2, 26, size=150).tolist())
        sent = 0
        while sent < 150 or flight:
            while len(flight) < 12 and sent < 150:
                content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.1})})
                message = Message(content, next(order), "train", ttl=5.0)
                flight.update(dict.fromkeys(grid.push_messages([message])))
                sent += 1
            for reply in grid.pull_messages(flight.keys()):
                del flight[reply.metadata.reply_to_message_id]
                if reply.has_content():
                    mixed = 0.5 * from_record(layout, reply.content["arrays"])
                    arrays = to_record(layout, mixed + 0.5 * from_record(layout, arrays))
        recorder.final(arrays)

    return simulate(server, parts.app, parts.fleet, seed=0, executor=executor, progress=False)


NETWORK = [
    "data=digits",
    "model=mlp",
    "model.hidden=[16]",
    "client=adamw",
    "client.rule.keep_moments=true",
    "client.batch_size=8",
    "num_clients=12",
]


def network(executor: Executor, *overrides: str) -> SimulatedRun:
    """Nodes without a server, which go away, fail, and lose what they send."""
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [*NETWORK, *overrides, "seed=0"])
    parts = build(config)
    initial = ArrayRecord(parts.model().state_dict())
    fleet = mobile(
        num_clients=12,
        seed=0,
        availability=ExponentialOnOff(12, 0, mean_on_s=1.0, mean_off_s=0.3),
        faults=Faults(dropout=0.1, crash=0.1, message_loss=0.05, detection_s=0.1),
    )

    def server(grid: Grid, _: Context, recorder: Recorder) -> None:
        result = parts.strategy.start(
            grid=grid, initial_arrays=initial, num_rounds=ROUNDS, timeout=5.0
        )
        recorder.final(result.arrays)

    return simulate(server, parts.app, fleet, seed=0, executor=executor, progress=False)


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

    fleet = mobile(
        num_clients=24,
        seed=seed,
        availability=ExponentialOnOff(24, seed, mean_on_s=3.0, mean_off_s=1.0),
        faults=Faults(dropout=0.1, crash=0.1, message_loss=0.05, detection_s=0.5),
    )
    return simulate(app, make_foreign_client, fleet, seed=seed, executor=executor, progress=False)


def hashes(run: SimulatedRun) -> Hashes:
    return run.summary["trace_sha256"], run.summary["model_sha256"]


MAX_BATCH = 4  # several batches a wave, so that every actor gets some


@pytest.fixture(scope="module")
def serial_ours() -> SimulatedRun:
    return ours(SerialExecutor(MAX_BATCH))


@pytest.fixture(scope="module")
def serial_foreign() -> SimulatedRun:
    return foreign(SerialExecutor())


def test_runs_compared_here_have_faults_of_every_kind(
    serial_ours: SimulatedRun, serial_foreign: SimulatedRun
) -> None:
    # Otherwise the tests below would prove little.
    lost = {"dropout", "crash", "departure", "download_lost", "upload_lost"}
    assert set(serial_ours.summary["faults"]) >= lost
    assert "expired" in serial_ours.trace.table()["kind"].to_pylist()
    assert set(serial_foreign.summary["faults"]) >= {"dropout", "crash", "client_error", "timeout"}
    for run in (serial_ours, serial_foreign):
        assert run.summary["totals"]["client_updates"] > 30
        # Clients are met again and again, so what they keep matters.
        assert max(run.trace.table()["dispatch"].to_pylist()) >= 3


# An actor takes seconds to start, so the quick tests share the numbers of actors among them; the
# slow ones fill the table.
def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("actors", [2, slow(1), slow(4)])
def test_number_of_actors_does_not_change_our_app(actors: int, serial_ours: SimulatedRun) -> None:
    run = ours(RayExecutor(num_actors=actors, max_batch=MAX_BATCH))
    assert run.summary["extra"]["actors"] == actors
    assert hashes(run) == hashes(serial_ours)


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_number_of_actors_does_not_change_clients_trained_one_by_one(actors: int) -> None:
    run = ours(RayExecutor(num_actors=actors, max_batch=1))
    assert hashes(run) == hashes(ours(SerialExecutor(max_batch=1)))


@pytest.mark.slow
@pytest.mark.parametrize("actors", [2, 1])
def test_number_of_actors_does_not_change_outer_steps(actors: int) -> None:
    serial = outer(SerialExecutor(MAX_BATCH))
    assert serial.summary["faults"]["crash"] > 1
    assert hashes(outer(RayExecutor(num_actors=actors, max_batch=MAX_BATCH))) == hashes(serial)


@pytest.mark.slow
@pytest.mark.parametrize("actors", [2, 1, 4])
def test_number_of_actors_does_not_change_a_foreign_app(
    actors: int, serial_foreign: SimulatedRun
) -> None:
    assert hashes(foreign(RayExecutor(num_actors=actors))) == hashes(serial_foreign)


def test_batching_changes_rounding_only(serial_ours: SimulatedRun) -> None:
    alone = ours(SerialExecutor(max_batch=1))
    assert alone.summary["trace_sha256"] == serial_ours.summary["trace_sha256"]
    assert alone.arrays is not None
    assert serial_ours.arrays is not None
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(
            serial_ours.arrays[name].numpy(), array.numpy(), rtol=1e-3, atol=1e-4
        )


def test_same_seed_gives_the_same_run_twice(
    serial_ours: SimulatedRun, serial_foreign: SimulatedRun
) -> None:
    random.seed(5)  # what a program did with the global generators before does not matter
    torch.manual_seed(5)
    assert hashes(ours(SerialExecutor(MAX_BATCH))) == hashes(serial_ours)
    assert hashes(foreign(SerialExecutor())) == hashes(serial_foreign)


def test_another_seed_gives_another_run(
    serial_ours: SimulatedRun, serial_foreign: SimulatedRun
) -> None:
    for other, run in (
        (ours(SerialExecutor(MAX_BATCH), seed=1), serial_ours),
        (foreign(SerialExecutor(), seed=1), serial_foreign),
    ):
        assert other.summary["trace_sha256"] != run.summary["trace_sha256"]
        assert other.summary["model_sha256"] != run.summary["model_sha256"]


class Killing(RayExecutor):
    """Sends SIGKILL to an actor that holds work, once."""

    waves = 0

    def submit(self, wave: Sequence[Request]) -> None:
        super().submit(wave)
        self.waves += 1
        if self.waves == 3:
            busy = next(slot for slot in self._slots if slot.held)
            os.kill(busy.pid, signal.SIGKILL)


def test_killed_actor_does_not_change_the_run_and_is_reported(
    serial_ours: SimulatedRun, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="fl"):
        run = ours(Killing(num_actors=2, max_batch=MAX_BATCH))
    assert run.summary["extra"]["actor_deaths"] == 1
    assert "Ray actor" in caplog.text
    assert "died; a new one takes over" in caplog.text
    assert hashes(run) == hashes(serial_ours)


class KillingAtRandom(RayExecutor):
    """Sends SIGKILL to one of its actors, whatever that does, at random moments."""

    def __init__(self, seed: int, deaths: int, moments: int) -> None:
        super().__init__(num_actors=2, max_batch=MAX_BATCH)
        self.rng = np.random.default_rng(seed)
        self.at = set(self.rng.choice(moments, size=deaths, replace=False).tolist())
        self.moment = 0
        self.killed = 0

    def _maybe(self) -> None:
        if self.moment in self.at:
            with contextlib.suppress(ProcessLookupError):  # dead already, and not replaced yet
                os.kill(self.actor_pids()[self.rng.integers(2)], signal.SIGKILL)
                self.killed += 1
        self.moment += 1

    def submit(self, wave: Sequence[Request]) -> None:
        super().submit(wave)
        self._maybe()

    def result(self, request: Request) -> Result:
        self._maybe()
        return super().result(request)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("run_of", [ours, asynchronous])
def test_actors_killed_at_random_change_nothing_but_time(
    run_of: Callable[[Executor], SimulatedRun], seed: int
) -> None:
    executor = KillingAtRandom(seed, deaths=8, moments=60)
    run = run_of(executor)
    assert executor.killed >= 4  # of 8 moments drawn, those before the run ended
    assert run.summary["extra"]["actor_deaths"] >= 2  # of an idle one, the run may not learn
    assert hashes(run) == hashes(run_of(SerialExecutor(max_batch=MAX_BATCH)))


def test_asynchronous_tasks_train_in_batches_with_the_same_bits_everywhere() -> None:
    oracle = asynchronous(SerialExecutor())
    # One at a time is sent, and yet tasks pile up between the replies that need them.
    assert oracle.summary["totals"]["client_updates"] > oracle.summary["extra"]["batches"]
    assert hashes(asynchronous(RayExecutor(num_actors=2))) == hashes(oracle)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dfedavg", "adpsgd"])
def test_number_of_actors_does_not_change_a_network_without_a_server(strategy: str) -> None:
    twice = ["strategy.rule.gossip_steps=2"] if strategy == "dfedavg" else []
    chosen = [f"strategy={strategy}", "topology=torus", *twice]
    oracle = network(SerialExecutor(MAX_BATCH), *chosen)
    assert {"dropout", "crash", "transfer_lost", "absent"} <= set(oracle.summary["faults"])
    run = network(RayExecutor(num_actors=2, max_batch=MAX_BATCH), *chosen)
    assert hashes(run) == hashes(oracle)
