"""Flower's own strategies and mods on the simulated grid, against the same ones fed by hand."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from stand_ins import Client, fleet_of, times

from fl.execution import SerialExecutor
from fl.execution.contract import RunInfo
from fl.flower.identity import assume_identity, node_id
from fl.flower.messages import with_content
from fl.flower.private import give_id
from fl.simulation.cost import CostModel
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event

N = 8
ROUNDS = 3
START = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}


# ---- a client whose update is a formula ----------------------------------------------------------


def app_with(mods=None) -> ClientApp:
    app = ClientApp()

    @app.train(mods=mods)
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        config = message.content["config"]
        rng = np.random.default_rng([partition, int(config["server-round"])])
        pull = 0.1 + 0.01 * float(config.get("proximal-mu", 0.0))
        arrays = {}
        for name, array in message.content["arrays"].items():
            value = array.numpy()
            step = rng.standard_normal(value.shape).astype(np.float32) - value
            arrays[name] = Array(value + np.float32(pull) * step)
        metrics = MetricRecord({"num-examples": 5 + partition, "train_loss": 0.5 + partition})
        return Message(
            RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        total = sum(float(array.numpy().sum()) for array in message.content["arrays"].values())
        metrics = MetricRecord({"num-examples": 5, "sum": total})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def initial() -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in START.items()})


@pytest.fixture(autouse=True)
def _quick_garbage_collection():
    """As `simulate` does: Bulyan and QFedAvg collect garbage after each reply."""
    gc.freeze()
    yield
    gc.unfreeze()


def seed_everything() -> None:
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002  (what Flower's wrappers draw from)


# ---- on the grid, and by hand --------------------------------------------------------------------


def on_the_grid(strategy: Strategy, app: ClientApp) -> tuple[list[ArrayRecord], SimGrid]:
    """Returns the model after every round. Client i's work takes N - i seconds."""
    fleet = fleet_of([Client(flops=(5 + i) / (N - i)) for i in range(N)])
    executor = SerialExecutor()
    executor.start(app, RunInfo(0, N, {}))
    grid = SimGrid(fleet, executor, cost_model=CostModel(flops_per_example=1.0))
    models = []
    seed_everything()
    strategy.start(
        grid=grid,
        initial_arrays=initial(),
        num_rounds=ROUNDS,
        train_config=ConfigRecord({"lr": 0.1}),
        evaluate_fn=lambda _, arrays: models.append(arrays),
    )
    return models[1:], grid


class NodeIds:
    """All that `configure_train` asks of a grid."""

    def get_node_ids(self) -> list[int]:
        return [node_id(client) for client in range(N)]


def by_hand(strategy: Strategy, app: ClientApp) -> list[ArrayRecord]:
    """Does what `start` does, calling the clients one by one; the last client is the first back."""
    arrays, config, models = initial(), ConfigRecord({"lr": 0.1}), []
    seed_everything()
    assume_identity()
    for server_round in range(1, ROUNDS + 1):
        messages = list(strategy.configure_train(server_round, arrays, config, NodeIds()))
        replies = []
        for message in sorted(messages, key=lambda m: -m.metadata.dst_node_id):
            client = message.metadata.dst_node_id - node_id(0)
            give_id(message, f"{client}")
            node_config = {"partition-id": client, "num-partitions": N}
            context = Context(1, message.metadata.dst_node_id, node_config, RecordDict(), {})
            copied = with_content(message, copy_of(message.content))
            replies.append(app(copied, context))
        aggregated, _ = strategy.aggregate_train(server_round, replies)
        arrays = arrays if aggregated is None else aggregated
        strategy.configure_evaluate(server_round, arrays, ConfigRecord(), NodeIds())
        models.append(arrays)
    return models


def copy_of(content: RecordDict) -> RecordDict:
    return RecordDict({key: record.copy() for key, record in content.items()})


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedAvg, half of the clients": partial(FedAvg, fraction_train=0.5),
    "FedAvgM": partial(FedAvgM, server_learning_rate=0.5, server_momentum=0.9),
    "FedAdagrad": FedAdagrad,
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "FedProx": partial(FedProx, proximal_mu=2.0),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": partial(FedTrimmedAvg, beta=0.25),
    "Krum": partial(Krum, num_malicious_nodes=2),
    "MultiKrum": partial(MultiKrum, num_malicious_nodes=2, num_nodes_to_select=3),
    "Bulyan": partial(Bulyan, num_malicious_nodes=1),
    "QFedAvg": partial(QFedAvg, client_learning_rate=0.1, q=0.5),
}


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_gives_the_same_arrays_as_when_it_is_fed_by_hand(make) -> None:
    simulated, grid = on_the_grid(make(), app_with())
    expected = by_hand(make(), app_with())
    assert len(simulated) == len(expected) == ROUNDS
    for got, want in zip(simulated, expected, strict=True):
        assert list(got) == list(want)
        for name in want:
            np.testing.assert_array_equal(got[name].numpy(), want[name].numpy())
    assert grid.clock.now() > 0
    assert not np.array_equal(simulated[-1]["w"].numpy(), START["w"])


def test_the_last_client_is_the_first_back_which_the_comparison_relies_on() -> None:
    _, grid = on_the_grid(FedAvg(fraction_evaluate=0.0), app_with())
    first_round = {c: t for (c, k), t in times(grid.trace, Event.UPLOAD_END).items() if k == 0}
    assert first_round == {client: pytest.approx(N - client) for client in range(N)}
    assert grid.clock.now() == pytest.approx(ROUNDS * N)


WRAPPERS: dict[str, tuple[Callable[[Strategy], Strategy], list]] = {
    "server side, fixed": (
        lambda s: DifferentialPrivacyServerSideFixedClipping(s, 0.3, 0.5, N),
        [],
    ),
    "server side, adaptive": (
        lambda s: DifferentialPrivacyServerSideAdaptiveClipping(s, 0.3, N),
        [],
    ),
    "client side, fixed": (
        lambda s: DifferentialPrivacyClientSideFixedClipping(s, 0.3, 0.5, N),
        [fixedclipping_mod],
    ),
    "client side, adaptive": (
        lambda s: DifferentialPrivacyClientSideAdaptiveClipping(s, 0.3, N),
        [adaptiveclipping_mod],
    ),
}


@pytest.mark.parametrize(("wrap", "mods"), WRAPPERS.values(), ids=WRAPPERS)
def test_differential_privacy_wrappers_agree_too_noise_included(wrap, mods) -> None:
    # The server draws its noise from NumPy's global generator: clients must not touch it.
    simulated, grid = on_the_grid(wrap(FedAvg()), app_with(mods))
    expected = by_hand(wrap(FedAvg()), app_with(mods))
    for got, want in zip(simulated, expected, strict=True):
        for name in want:
            np.testing.assert_array_equal(got[name].numpy(), want[name].numpy())
    assert grid.client_updates == N * ROUNDS
    assert grid.trace.num_faults == 0


def test_a_client_side_wrapper_without_its_mod_is_told_by_error_replies() -> None:
    class Watching(FedAvg):
        def aggregate_train(self, server_round, replies):
            seen.extend(replies)
            return super().aggregate_train(server_round, replies)

    seen: list[Message] = []
    # The mod wants the clipping norm that only the wrapper sends.
    on_the_grid(Watching(), app_with([fixedclipping_mod]))
    assert {reply.error.code for reply in seen} == {6}  # a mod's precondition failed
    assert "clipping_norm" in seen[0].error.reason


def test_mods_that_log_sizes_log_what_is_charged(caplog) -> None:
    with caplog.at_level(logging.INFO, logger="flwr"):
        _, grid = on_the_grid(
            FedAvg(fraction_evaluate=0.0), app_with([message_size_mod, arrays_size_mod])
        )
    sizes = {"Incoming": 0, "Outgoing": 0}
    for record in caplog.records:
        text = record.getMessage()
        if " message size: " in text:
            sizes[text.split()[0]] += int(text.split()[3])
    assert sizes == {"Incoming": grid.engine.bytes_down, "Outgoing": grid.engine.bytes_up}
    assert sizes["Incoming"] > 0


def test_local_differential_privacy_is_a_function_of_the_seed() -> None:
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=5.0, delta=1e-5)
    runs = [on_the_grid(FedAvg(), app_with([mod]))[0][-1]["w"].numpy() for _ in range(2)]
    plain = on_the_grid(FedAvg(), app_with())[0][-1]["w"].numpy()
    np.testing.assert_array_equal(*runs)
    assert not np.array_equal(runs[0], plain)
