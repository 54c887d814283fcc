"""Starting Ray, and joining a Ray that runs already. Not among the quick tests: each takes long."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from client_apps import RUN, make_behaving
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl import simulate
from fl.errors import ConfigError
from fl.execution import Executor, RayExecutor, SerialExecutor
from fl.simulation.world.fleets import uniform

pytestmark = pytest.mark.slow


def hashes(executor: Executor) -> tuple[str, str]:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        FedAvg(fraction_train=0.5, fraction_evaluate=0.0).start(
            grid=grid,
            initial_arrays=ArrayRecord({"w": Array(np.zeros(4, np.float32))}),
            num_rounds=4,
            train_config=ConfigRecord({"what": ""}),
        )

    fleet = uniform(num_clients=12, seed=0, speed_spread=3.0)
    run = simulate(app, make_behaving, fleet, executor=executor, progress=False)
    return run.summary["trace_sha256"], run.summary["model_sha256"]


@pytest.fixture(scope="module")
def oracle() -> tuple[str, str]:
    return hashes(SerialExecutor())


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not ray.is_initialized()
    yield
    assert not ray.is_initialized()


def test_executor_shuts_down_the_ray_that_it_started(oracle: tuple[str, str]) -> None:
    # With more actors than this machine may have CPUs.
    assert hashes(RayExecutor(num_actors=(os.cpu_count() or 1) + 1)) == oracle


def test_cluster_gives_the_same_run_and_goes_on(oracle: tuple[str, str]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        assert hashes(RayExecutor(num_actors=2, address=cluster.address)) == oracle
        ray.init(address=cluster.address, log_to_driver=False)
        assert sum(node["Alive"] for node in ray.nodes()) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "somewhere", "auto"])
def test_address_without_a_cluster_is_an_error_that_names_it(address: str) -> None:
    executor = RayExecutor(address=address)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at executor.address={address}:"):
        executor.start(make_behaving, RUN)
    executor.close()
