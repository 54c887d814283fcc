"""Apps of Flower's older kind: a round takes one round of virtual time, and no thread decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig, server
from flwr.server.client_manager import SimpleClientManager
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from stand_ins import Client, Scripted, fleet_of, grid_of, times

from fl.errors import SimulationError
from fl.execution.contract import Request, Result, RunInfo
from fl.runs.simulator import SimulatedRun, simulate
from fl.simulation.cost import CostModel
from fl.simulation.kernel.trace import Event
from fl.simulation.legacy import concurrent_rounds
from fl.simulation.world.faults import Faults

N = 4
START = [np.zeros((2, 3)), np.zeros(3)]
ROUNDS = 2


class Adding(NumPyClient):
    """Adds p + 1 to every parameter, from 10 (p + 1) examples; p is the partition."""

    def __init__(self, partition: int) -> None:
        self.partition = partition

    def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
        return [array + 100.0 for array in START]

    def fit(self, parameters, config):
        if config.get("raise") == self.partition:
            raise RuntimeError("no data today")
        grown = [array + self.partition + 1 for array in parameters]
        return grown, 10 * (self.partition + 1), {"seen": float(self.partition), "name": "x"}

    def evaluate(self, parameters, config):
        loss = float(parameters[0].sum())
        return loss, 10 * (self.partition + 1), {"accuracy": 1.0 / (self.partition + 1)}


def client_fn(context: Context):
    return Adding(int(context.node_config["partition-id"])).to_client()


def strategy(**kwargs: Any) -> FedAvg:
    settings: dict[str, Any] = {
        "min_available_clients": N,
        "min_fit_clients": N,
        "min_evaluate_clients": N,
        "initial_parameters": ndarrays_to_parameters(START),
    }
    return FedAvg(**{**settings, **kwargs})


def server_fn_app(make: Callable[[], FedAvg], **config: Any) -> ServerApp:
    def server_fn(context: Context) -> ServerAppComponents:
        return ServerAppComponents(
            strategy=make(), config=ServerConfig(num_rounds=ROUNDS, **config)
        )

    return ServerApp(server_fn=server_fn)


def workflow_app(make: Callable[[], FedAvg], **config: Any) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config_ = ServerConfig(num_rounds=ROUNDS, **config)
        DefaultWorkflow()(grid, LegacyContext(context, config_, make()))

    return app


KINDS = pytest.mark.parametrize("kind", [server_fn_app, workflow_app])


def run(app: ServerApp, **kwargs: Any) -> SimulatedRun:
    """A client takes as many seconds as it has examples; transfers take no time."""
    fleet = kwargs.pop("fleet", fleet_of([Client()] * N))
    settings: dict[str, Any] = {
        "executor": "serial",
        "cost_model": CostModel(flops_per_example=1.0),
        "progress": False,
    }
    client = ClientApp(client_fn=client_fn, mods=kwargs.pop("mods", None))
    return simulate(app, client, fleet, **{**settings, **kwargs})


@KINDS
def test_all_clients_of_a_round_are_in_flight_at_once_and_the_slowest_sets_its_time(kind) -> None:
    result = run(kind(strategy))
    # Training takes 10, 20, 30 and 40 s, and so does evaluation, which reports as many examples.
    dispatches = [t for t, k in zip(result.trace.time, result.trace.kind, strict=True) if k == 0]
    assert dispatches == [0.0] * N + [40.0] * N + [80.0] * N + [120.0] * N
    assert sorted(times(result.trace, Event.UPLOAD_END).values())[:N] == [10.0, 20.0, 30.0, 40.0]
    assert result.summary["totals"]["virtual_s"] == 160.0
    assert result.summary["totals"]["client_updates"] == N * ROUNDS


@KINDS
def test_the_result_is_that_of_fedavg_by_hand(kind) -> None:
    models = []

    def evaluate(server_round, parameters, config):
        models.append(parameters)
        return float(server_round), {"norm": 2.0 * server_round}

    run(kind(lambda: strategy(evaluate_fn=evaluate)))
    # Weights 10, 20, 30, 40 and steps 1, 2, 3, 4: the mean step is 300 / 100.
    for server_round, model in enumerate(models):
        for array, start in zip(model, START, strict=True):
            np.testing.assert_allclose(array, start + 3.0 * server_round, rtol=1e-12)
    assert len(models) == 1 + ROUNDS


@KINDS
def test_what_server_and_clients_evaluate_lands_in_the_history_with_virtual_time(kind) -> None:
    def evaluate(server_round, parameters, config):
        return 10.0 * server_round, {"accuracy": 0.1 * server_round, "name": "x"}

    history = run(kind(lambda: strategy(evaluate_fn=evaluate))).history
    by_server = [
        (row["round"], row["time_s"], row["loss"], row["accuracy"])
        for row in history
        if "loss" in row
    ]
    assert by_server == [(0, 0.0, 0.0, 0.0), (1, 40.0, 10.0, 0.1), (2, 120.0, 20.0, 0.2)]
    # Means over 10 (p + 1) examples: of p, 2; of 1 / (p + 1), 4 * 10 / 100.
    trained = [(row["time_s"], row["train_seen"]) for row in history if "train_seen" in row]
    assert trained == [(40.0, 2.0), (120.0, 2.0)]
    by_clients = [
        (row["round"], row["time_s"], row["client_loss"], row["client_accuracy"])
        for row in history
        if "client_loss" in row
    ]
    assert by_clients == [
        (1, 80.0, 18.0, pytest.approx(0.4)),  # 6 numbers of 3 after one round
        (2, 160.0, 36.0, pytest.approx(0.4)),
    ]


@KINDS
def test_two_runs_are_equal_and_another_seed_samples_other_clients(kind) -> None:
    def make() -> FedAvg:
        return strategy(min_fit_clients=2, fraction_fit=0.5, fraction_evaluate=0.5)

    hashes = [run(kind(make), seed=seed).summary["trace_sha256"] for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


@KINDS
def test_initial_parameters_can_come_from_a_client(kind) -> None:
    models = []

    def evaluate(server_round, parameters, config):
        models.append(parameters[0][0, 0])

    run(kind(lambda: strategy(initial_parameters=None, evaluate_fn=evaluate)))
    assert models == [100.0, pytest.approx(103.0), pytest.approx(106.0)]


def test_secure_aggregation_with_its_workflow_and_its_mod_gives_the_mean() -> None:
    models = []

    def make() -> FedAvg:
        return strategy(fraction_evaluate=0.0, min_evaluate_clients=0, evaluate_fn=evaluate)

    def evaluate(server_round, parameters, config):
        models.append(parameters[0])

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        workflow = SecAggPlusWorkflow(3, 2, max_weight=100, timeout=500.0)
        legacy = LegacyContext(context, ServerConfig(num_rounds=ROUNDS), make())
        DefaultWorkflow(fit_workflow=workflow)(grid, legacy)

    result = run(app, mods=[secaggplus_mod])
    # The mean step is 3, as above, to within the protocol's quantisation.
    for server_round, model in enumerate(models):
        np.testing.assert_allclose(model, 3.0 * server_round, atol=0.01)
    # Four messages a round to each client: three cost the constant 1 s, one its examples.
    assert result.summary["totals"]["virtual_s"] == ROUNDS * (3 * 1.0 + 40.0)
    # They are one round, in which each client contributes one update.
    assert [(row["round"], row["train_seen"]) for row in result.history] == [(1, 2.0), (2, 2.0)]
    assert result.summary["totals"]["rounds"] == ROUNDS
    assert result.summary["totals"]["client_updates"] == ROUNDS * N


@KINDS
@pytest.mark.parametrize("evaluate", [None, lambda *_: (0.5, {})])
def test_the_final_model_of_an_older_app_is_the_runs(kind, evaluate) -> None:
    result = run(kind(lambda: strategy(evaluate_fn=evaluate)))
    arrays = [array.numpy() for array in result.arrays.values()]
    for array, start in zip(arrays, START, strict=True):  # see above: a step of 3 in every round
        np.testing.assert_allclose(array, start + 3.0 * ROUNDS, rtol=1e-12)
    assert result.summary["model_sha256"] == run(kind(strategy)).summary["model_sha256"]
    other = run(kind(lambda: strategy(initial_parameters=None)))
    assert other.summary["model_sha256"] not in (None, result.summary["model_sha256"])


def test_a_client_that_is_late_or_raises_is_a_failure() -> None:
    seen = []

    class Watching(FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            seen.append(([proxy.node_id for proxy, _ in results], failures))
            return super().aggregate_fit(server_round, results, failures)

    def make() -> FedAvg:
        return Watching(
            min_available_clients=N,
            initial_parameters=ndarrays_to_parameters(START),
            on_fit_config_fn=lambda server_round: {"raise": 1},
            fraction_evaluate=0.0,
        )

    result = run(server_fn_app(make, round_timeout=35.0))
    arrived, failures = seen[0]
    assert arrived == [2, 4]  # clients 0 and 2, in order of arrival
    assert sorted(str(failure)[:38] for failure in failures) == [
        "node 3 replied with an error: <class '",
        "node 5 replied with an error: the mess",
    ]
    assert "no data today" in str(failures)
    # In the second round, client 3 has its first task to finish, and is late again.
    assert result.summary["faults"] == {"client_error": 2, "expired": 2}
    assert result.summary["totals"]["virtual_s"] == 70.0


def test_a_client_that_is_gone_without_a_word_is_a_failure_too() -> None:
    grid = grid_of(
        fleet_of([Client()] * 2, availability=Scripted(2, {1: [0.5]})), flops=1.0, answer=fit_res
    )
    instruction = FitIns(ndarrays_to_parameters(START), {})
    proxies = [Proxy(2), Proxy(3)]
    with concurrent_rounds(grid):
        results, failures = server.fit_clients([(p, instruction) for p in proxies], None, 60.0, 1)
    assert [proxy for proxy, _ in results] == proxies[:1]
    assert [type(failure) for failure in failures] == [ValueError]  # its TTL is the timeout
    assert grid.clock.now() == 60.0


class Proxy:
    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


def fit_res(request: Request) -> Result:
    message = request.message(own_content=True)
    context = request.context(RunInfo(0, N, {}))
    return Result(content=ClientApp(client_fn=client_fn)(message, context).content)


def test_one_instruction_object_is_one_broadcast() -> None:
    payloads = []
    grid = grid_of(
        fleet_of([Client()] * 3),
        answer=lambda request: payloads.append(request.payload) or fit_res(request),
    )
    instruction = FitIns(ndarrays_to_parameters(START), {})
    with concurrent_rounds(grid):
        results, _ = server.fit_clients([(Proxy(i), instruction) for i in (2, 3, 4)], None, None, 1)
    assert len({id(payload) for payload in payloads}) == 1
    for proxy, result in results:
        np.testing.assert_array_equal(
            parameters_to_ndarrays(result.parameters)[0], START[0] + proxy.node_id - 1
        )


# ---- waiting for clients -------------------------------------------------------------------------


@KINDS
def test_waiting_for_clients_passes_virtual_time(kind) -> None:
    began = time.perf_counter()
    fleet = fleet_of([Client()] * N, availability=Scripted(N, {3: [500.5]}, offline=[3]))
    result = run(kind(strategy), fleet=fleet)
    assert min(result.trace.time) == 501.0  # asked every second
    assert result.summary["totals"]["virtual_s"] == 501.0 + 160.0
    assert time.perf_counter() - began < 501.0


def test_waiting_for_more_clients_than_there_are_is_an_error() -> None:
    with pytest.raises(SimulationError, match="4 of 4 are, and no other will ever come"):
        run(server_fn_app(lambda: strategy(min_available_clients=N + 1)))


def test_who_is_sampled_does_not_depend_on_when_flowers_thread_looks() -> None:
    """Flower registers clients from a thread that looks every few host seconds."""
    changes = {client: [20.0 * k + client for k in range(1, 40)] for client in range(1, 8)}

    def once(looks: int) -> str:
        def evaluate(server_round, parameters, config):
            for _ in range(looks):  # what the thread does, at a moment nobody chose
                for thread_target in lookers:
                    run_in_thread(thread_target)

        lookers: list[Callable[[], Any]] = []

        def make() -> FedAvg:
            return strategy(
                min_fit_clients=2, min_available_clients=3, fraction_fit=0.4, evaluate_fn=evaluate
            )

        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            manager = SimpleClientManager()
            legacy = LegacyContext(context, ServerConfig(num_rounds=6), make(), manager)
            lookers.append(lambda: manager.num_available())
            DefaultWorkflow()(grid, legacy)

        fleet = fleet_of(
            [Client()] * 8,
            availability=Scripted(8, changes, offline=[2, 5]),
            faults=Faults(detection_s=1.0),
        )
        return run(app, fleet=fleet, num_partitions=8).summary["trace_sha256"]

    assert once(looks=0) == once(looks=3)


def run_in_thread(target: Callable[[], Any]) -> None:
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()


def test_flowers_functions_are_put_back() -> None:
    before = (server.fit_clients, server.evaluate_clients, SimpleClientManager.wait_for)

    def fail() -> None:
        with concurrent_rounds(grid_of(fleet_of([Client()]))):
            assert server.fit_clients is not before[0]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (server.fit_clients, server.evaluate_clients, SimpleClientManager.wait_for) == before
