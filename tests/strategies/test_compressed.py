"""Compressed uplinks: any strategy, any member of the group, true bytes, hostile payloads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result
from hydra import compose, initialize_config_module

import fl
from fl import simulate, strategies
from fl.aggregation import Mean, Median
from fl.clients import Downlink, Sgd, TrainingApp, Uplink
from fl.clients.app.uplink import PAYLOAD_KEY
from fl.compression import (
    EF21,
    Broadcast,
    Cast,
    Diana,
    ErrorFeedback,
    Identity,
    Qsgd,
    Shapes,
    TopK,
)
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError
from fl.execution import RayExecutor
from fl.flower.records import from_record, to_record
from fl.models import LogisticRegression, build, evaluate
from fl.runs import simulator
from fl.runs.making import make
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleets import uniform
from fl.strategies import Exchange, driver_of
from fl.vectors.layout import Layout

MEMBERS = sorted((Path(fl.__file__).parent / "conf" / "compressor").glob("[!_]*.yaml"))
DATA = federate(load_digits, partial(partition.iid, num_partitions=4, seed=0))
MODEL = partial(
    build, partial(LogisticRegression, init="glorot"), DATA.input_shape, DATA.num_classes, 0
)
CLIENTS = 4


def flower(**more):
    return FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=CLIENTS, **more)


def ours(**more):
    arguments = {"fraction_train": 1.0, "min_train_nodes": CLIENTS} | more
    return strategies.Rounds(strategies.FedAvg(), **arguments)


def run(channel=None, strategy=None, rounds=3, app=None, downlink=None, fleet=None, executor=None):
    strategy = strategy or flower()
    if channel is not None or downlink is not None:
        strategy = driver_of(strategy).within(Exchange(channel, downlink, num_clients=CLIENTS))
    app = app or TrainingApp(
        MODEL,
        DATA,
        Sgd(lr=0.1),
        batch_size=32,
        uplink=channel and Uplink(channel),
        downlink=downlink and Downlink(downlink),
    )
    initial = ArrayRecord(MODEL().state_dict())

    def server(grid, context, recorder):
        result = strategy.start(grid, initial, num_rounds=rounds)
        recorder.final(result.arrays)

    fleet = fleet or uniform(num_clients=CLIENTS, seed=0)
    return simulate(server, app, fleet, executor=executor or "serial", progress=False)


def sizes(result, event):
    kinds = np.array(result.trace.kind)
    return np.array(result.trace.bytes)[kinds == event]


def vector(arrays):
    return np.concatenate([array.numpy().ravel() for array in arrays.values()])


def test_identity_changes_nothing_but_the_rounding_of_a_difference():
    plain, packed = run(None), run(Identity())
    np.testing.assert_allclose(vector(packed.arrays), vector(plain.arrays), atol=1e-6)


def test_the_link_is_charged_the_payload_and_the_metrics():
    channel = TopK(density=0.05)
    trace = run(channel, rounds=1).trace
    kinds = np.array(trace.kind)
    sizes = np.array(trace.bytes)[kinds == Event.UPLOAD_END]
    layout_size = 64 * 10 + 10
    k = round(0.05 * layout_size)
    # Flower counts keys and 8 bytes for each of num-examples, train-loss and steps.
    metrics = sum(len(name) + 8 for name in ("num-examples", "train-loss", "steps"))
    payloads = sizes - metrics - len(PAYLOAD_KEY)
    values = 4 * k
    assert (payloads > values).all()
    # Indices cost at most a bitmap or raw 32-bit numbers, whichever is smaller.
    assert (payloads <= values + min(layout_size // 8 + 1, 4 * k) + 32).all()


def test_error_feedback_state_lives_in_the_clients_context():
    kept = run(ErrorFeedback(TopK(density=0.05)), rounds=10)
    lost = run(TopK(density=0.05), rounds=10)
    target = vector(run(None, rounds=10).arrays)
    far = np.linalg.norm(vector(lost.arrays) - target)
    assert np.linalg.norm(vector(kept.arrays) - target) < far


def test_a_foreign_app_with_the_uplink_as_a_mod_sends_what_ours_sends():
    channel = TopK(density=0.05)
    ours = TrainingApp(MODEL, DATA, Sgd(lr=0.1), batch_size=32)
    foreign = ClientApp(mods=[Uplink(channel)])

    @foreign.train()
    def train(message, context):
        return ours(message, context)

    assert run(channel, app=foreign).summary["model_sha256"] == run(channel).summary["model_sha256"]


@pytest.mark.parametrize("aggregator", [Mean(), Median()], ids=repr)
def test_rows_decoded_from_payloads_reach_an_aggregator(aggregator):
    plain = run(None, ours(aggregator=aggregator))
    packed = run(Identity(), ours(aggregator=aggregator))
    np.testing.assert_allclose(vector(packed.arrays), vector(plain.arrays), rtol=1e-4, atol=1e-6)


def test_over_compressed_links_our_rounds_make_the_model_that_flowers_make():
    channels = {"channel": ErrorFeedback(TopK(density=0.1)), "downlink": EF21(TopK(density=0.2))}
    flowers, rounds = run(**channels), run(strategy=ours(), **channels)
    np.testing.assert_allclose(vector(rounds.arrays), vector(flowers.arrays), atol=1e-5)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\xff" * len(data),
    ],
)
def test_a_hostile_payload_is_an_error_reply_and_leaves_the_others(damage):
    channel = TopK(density=0.05)
    strategy = driver_of(flower()).within(Exchange(channel, num_clients=CLIENTS))
    initial = ArrayRecord(MODEL().state_dict())
    honest = TrainingApp(MODEL, DATA, Sgd(lr=0.1), uplink=Uplink(channel))
    hostile = ClientApp()

    @hostile.train()
    def train(message, context):
        reply = honest(message, context)
        if context.node_config["partition-id"] == 0:
            payload = reply.content["arrays"][PAYLOAD_KEY]
            data = damage(payload.data)
            reply.content["arrays"] = ArrayRecord(
                {PAYLOAD_KEY: Array("uint8", (len(data),), payload.stype, data)}
            )
        return reply

    seen = []
    original = strategy.inner.aggregate_train
    strategy.inner.aggregate_train = lambda r, replies: original(
        r, seen.append(list(replies)) or seen[-1]
    )

    def server(grid, context, recorder):
        recorder.final(strategy.start(grid, initial, num_rounds=1).arrays)

    result = simulate(
        server, hostile, uniform(num_clients=CLIENTS, seed=0), executor="serial", progress=False
    )
    assert [reply.has_error() for reply in seen[0]].count(True) == 1
    assert np.isfinite(vector(result.arrays)).all()
    assert result.summary["faults"] == {"rejected": 1}
    table = result.trace.table().to_pylist()
    (refused,) = [row for row in table if row["kind"] == "rejected"]
    assert (refused["client"], refused["dispatch"]) == (0, 0)
    assert refused["time_s"] == max(row["time_s"] for row in table)


def test_a_reply_without_a_payload_is_an_error_reply():
    channel = Identity()
    plain = TrainingApp(MODEL, DATA, Sgd(lr=0.1))  # no uplink
    result = run(channel, app=plain, rounds=1)
    assert result.arrays is None, "no reply could be decoded, so there is no new model"


@pytest.mark.parametrize("path", MEMBERS, ids=lambda path: path.stem)
def test_every_compressor_runs_under_a_stock_strategy(path):
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [f"compressor={path.stem}", f"num_clients={CLIENTS}"])
    channel = make(config, "compressor")
    result = run(channel, rounds=2)
    assert np.isfinite(vector(result.arrays)).all()
    replies = result.summary["totals"]["client_updates"]
    assert replies == 2 * CLIENTS
    assert "client_error" not in result.summary["faults"]


def test_metrics_pass_through():
    history = run(TopK(density=0.5)).history
    assert [row["round"] for row in history] == [1, 2, 3]
    assert all("train_loss" in row for row in history)


def test_replies_with_errors_pass_through():
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"]:
            raise RuntimeError("no")
        model = message.content["arrays"]
        content = RecordDict({"arrays": model, "metrics": MetricRecord({"num-examples": 1})})
        return Uplink(Identity())(message, context, lambda m, c: Message(content, reply_to=m))

    result = run(Identity(), app=app, rounds=1)
    assert result.summary["faults"]["client_error"] == CLIENTS - 1
    np.testing.assert_array_equal(vector(result.arrays), vector(ArrayRecord(MODEL().state_dict())))


# ---- what the server sends -----------------------------------------------------------------------

LAYOUT = Layout.of(MODEL())
D = LAYOUT.size
OVERHEAD = len("version") + 4 + len("update.0")
CONFIG = len("server-round") + 8


def test_an_uncompressed_downlink_changes_nothing_but_the_rounding_of_a_difference():
    np.testing.assert_allclose(
        vector(run(downlink=Identity()).arrays), vector(run().arrays), atol=1e-6
    )


@pytest.mark.parametrize(
    ("downlink", "first", "then"),
    [
        (Cast("bf16"), 6 + 2 * D, 6 + 2 * D),
        (EF21(TopK(density=0.1)), 11 + 4 * D, None),
    ],
    ids=["bf16", "ef21"],
)
def test_the_link_to_the_clients_is_charged_the_payload(downlink, first, then):
    result = run(downlink=downlink, rounds=3)
    for event in (Event.DISPATCH, Event.DOWNLOAD_END):
        received = sizes(result, event).reshape(3, CLIENTS) - OVERHEAD - CONFIG
        assert (received[0] == first).all()
        if then is not None:
            assert (received[1:] == then).all()
        else:
            k = round(0.1 * D)
            assert (received[1:] > 11 + 4 * k).all()
            assert (received[1:] <= 11 + 6 + 4 * k + D // 8 + 32).all()


@pytest.mark.parametrize("downlink", [Cast("bf16"), EF21(TopK(density=0.2))])
def test_learning_survives_a_compressed_downlink(downlink):
    plain, packed = vector(run(rounds=10).arrays), vector(run(downlink=downlink, rounds=10).arrays)
    start = vector(ArrayRecord(MODEL().state_dict()))
    assert np.linalg.norm(packed - plain) < 0.35 * np.linalg.norm(plain - start)


def test_the_servers_model_does_not_collect_the_errors_of_the_downlink():
    # E3M0 rounds by up to a third. A client that changes nothing must leave the server's model as
    # it was: what it sends back is the change, not the rounded model.
    app = ClientApp(mods=[Downlink(Cast("e3m0"), LAYOUT)])

    @app.train()
    def train(message, context):
        model, metrics = message.content["arrays"], MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": model, "metrics": metrics}), reply_to=message)

    result = run(downlink=Cast("e3m0"), app=app)
    start = vector(ArrayRecord(MODEL().state_dict()))
    np.testing.assert_allclose(vector(result.arrays), start, atol=1e-7)


def test_both_directions_together_on_a_foreign_app_are_those_of_ours():
    up, down = ErrorFeedback(TopK(density=0.1)), EF21(TopK(density=0.2))
    ours = TrainingApp(MODEL, DATA, Sgd(lr=0.1), batch_size=32)
    foreign = ClientApp(mods=[Downlink(down, LAYOUT), Uplink(up)])

    @foreign.train()
    def train(message, context):
        return ours(message, context)

    results = [run(up, downlink=down, app=app, rounds=4) for app in (foreign, None)]
    assert results[0].summary["model_sha256"] == results[1].summary["model_sha256"]


def faulty_fleet():
    faults = Faults(dropout=0.15, crash=0.15, message_loss=0.15, detection_s=1.0)
    return replace(uniform(num_clients=CLIENTS, seed=0), faults=faults)


@pytest.mark.parametrize("up", [None, EF21(TopK(density=0.2)), ErrorFeedback(TopK(density=0.2))])
@pytest.mark.parametrize("rounds", [flower, ours])
def test_clients_that_miss_messages_or_lose_their_memory_come_back_into_step(rounds, up):
    strategy = rounds(min_available_nodes=CLIENTS)
    strategy.min_train_nodes = 1
    strategy.fraction_train = 0.5
    result = run(up, strategy, downlink=EF21(TopK(density=0.2)), rounds=40, fleet=faulty_fleet())
    faults = result.summary["faults"]
    assert faults["crash"] >= 2
    assert faults["upload_lost"] >= 2
    # A client without its memory, or a payload out of turn, costs one error reply; then it is told.
    lost = faults["crash"] + faults["upload_lost"] + faults["dropout"]
    assert faults.get("client_error", 0) + faults.get("rejected", 0) <= lost
    arrived = result.summary["totals"]["client_updates"]
    assert arrived > 40
    assert np.linalg.norm(vector(result.arrays)) < 100


@pytest.mark.parametrize("kind", ["first", "later"])
def test_a_tracked_client_whose_message_was_refused_starts_over(kind):
    channel = EF21(TopK(density=0.2))
    honest = TrainingApp(MODEL, DATA, Sgd(lr=0.1), uplink=Uplink(channel))
    app = ClientApp()

    @app.train()
    def train(message, context):
        reply = honest(message, context)
        broken = 1 if kind == "first" else 3
        if message.content["config"]["server-round"] == broken:
            reply.content["arrays"] = ArrayRecord(
                {PAYLOAD_KEY: Array("uint8", (1,), "fl.payload", b"?")}
            )
        return reply

    result = run(channel, app=app, rounds=5)
    assert result.summary["faults"] == {"rejected": CLIENTS, "no_step": 1}
    assert result.summary["totals"]["client_updates"] == 5 * CLIENTS


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays: {},
        lambda arrays: arrays | {"update.0": _payload(b"\xff" * 40)},
        lambda arrays: arrays | {"update.0": _payload(arrays["update.0"].data[:-1])},
        lambda arrays: arrays | {"update.0": _payload(arrays["update.0"].data * 2)},
        lambda arrays: arrays | {"version": _payload(b"\0")},
        lambda arrays: arrays | {"version": _payload(b"\xff" * 4)},
        lambda arrays: {"version": arrays["version"]},
        lambda arrays: {n: Array("uint8", a.shape, "pickle", a.data) for n, a in arrays.items()},
    ],
)
@pytest.mark.parametrize("downlink", [EF21(TopK(density=0.2)), Cast("fp16")])
def test_a_hostile_downlink_is_an_error_reply(downlink, damage):
    shapes = Shapes.of(LAYOUT)
    broadcast = Broadcast(downlink, shapes)
    broadcast.send(from_record(LAYOUT, ArrayRecord(MODEL().state_dict())))
    honest = {"version": _payload(b"\0" * 4), "update.0": _payload(broadcast.parts(None)[0])}
    app = TrainingApp(MODEL, DATA, Sgd(lr=0.1), downlink=Downlink(downlink))

    class Hostile(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for message in messages:
                bad = message.metadata.dst_node_id == messages[0].metadata.dst_node_id
                sent = damage(honest) if bad else honest
                message.content = RecordDict({"arrays": ArrayRecord(sent), "config": config})
            return messages

    strategy = Hostile(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=CLIENTS)
    initial = ArrayRecord(MODEL().state_dict())

    def server(grid, context, recorder):
        strategy.start(grid, initial, num_rounds=1)

    result = simulate(
        server, app, uniform(num_clients=CLIENTS, seed=0), executor="serial", progress=False
    )
    fine = (
        isinstance(downlink, Cast)
        and damage(honest).get("version", _payload(b"")).data == b"\xff" * 4
    )
    assert result.summary["faults"] == ({} if fine else {"client_error": 1})


def _payload(data):
    return Array("uint8", (len(data),), "fl.payload", data)


def contents_of(run_rounds, **channels):
    """The distinct contents and model records that each broadcast of a run consisted of."""
    seen = []

    def note(messages):
        if messages:
            contents = {id(message.content) for message in messages}
            models = {id(message.content["arrays"]) for message in messages}
            seen.append((len(contents), len(models)))
        return messages

    class Spy(SimGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return super().send_and_receive(note(list(messages)), timeout=timeout)

        def push_messages(self, messages):
            return super().push_messages(note(list(messages)))

    original = simulator.SimGrid
    simulator.SimGrid = Spy
    try:
        run(rounds=run_rounds, **channels)
    finally:
        simulator.SimGrid = original
    return seen


@pytest.mark.parametrize(
    "channels",
    [
        {"channel": EF21(TopK(density=0.2))},
        {"channel": Diana(Qsgd())},
        {"downlink": Cast("bf16")},
        {"downlink": EF21(TopK(density=0.2))},
        {"channel": EF21(TopK(density=0.2)), "downlink": EF21(TopK(density=0.2))},
    ],
)
@pytest.mark.parametrize("rounds", [flower, ours])
def test_a_round_sends_one_content_to_all_clients(rounds, channels):
    assert contents_of(4, strategy=rounds(), **channels) == [(1, 1)] * 4


@pytest.mark.parametrize("rounds", [flower, ours])
def test_clients_that_are_at_different_messages_still_share_one_content(rounds):
    # Two of four a round: the numbers of the tracked messages differ from client to client.
    strategy = rounds()
    strategy.fraction_train, strategy.min_train_nodes = 0.5, 2
    channel = EF21(TopK(density=0.2))
    assert contents_of(6, channel=channel, strategy=strategy) == [(1, 1)] * 6


def test_single_messages_pushed_and_pulled_are_compressed_like_rounds():
    up, down = EF21(TopK(density=0.2)), EF21(TopK(density=0.2))
    app = TrainingApp(MODEL, DATA, Sgd(lr=0.1), uplink=Uplink(up), downlink=Downlink(down))
    initial = ArrayRecord(MODEL().state_dict())

    class OneByOne(FedAvg):
        """Mixes in each reply as it comes, and sends the new model to whoever sent it."""

        def start(self, grid, initial_arrays, *args, **kwargs):
            w, config = vector(initial_arrays), ConfigRecord({"server-round": 1})

            def ask(node):
                record = to_record(LAYOUT, w, {})
                content = RecordDict({"arrays": record, "config": config})
                return list(grid.push_messages([Message(content, node, "train")]))

            pending = [name for node in grid.get_node_ids() for name in ask(node)]
            for _ in range(12):
                replies = []
                while not replies:
                    replies = list(grid.pull_messages(pending))
                for reply in replies:
                    assert not reply.has_error(), reply.error
                    pending.remove(reply.metadata.reply_to_message_id)
                    got = from_record(LAYOUT, reply.content["arrays"])
                    w = (0.5 * w + 0.5 * got).astype(np.float32)
                    pending += ask(reply.metadata.src_node_id)
            return Result(arrays=to_record(LAYOUT, w, {}))

    result = run(up, OneByOne(), app=app, downlink=down)
    assert result.summary["faults"] == {}
    loss_before, loss_after = (
        evaluate(loaded(arrays), DATA.test_set())[0] for arrays in (initial, result.arrays)
    )
    assert loss_after < 0.5 * loss_before
    received = sizes(result, Event.DOWNLOAD_END)
    # The client served first lacks one version; the others also those made meanwhile for it.
    assert received[CLIENTS] < received[0] / 4
    assert (np.diff(received[CLIENTS : 2 * CLIENTS]) > 0).all()
    assert (received <= received[0]).all()


def loaded(arrays):
    model = MODEL()
    model.load_state_dict(arrays.to_torch_state_dict())
    return model


def test_different_models_at_once_are_refused_on_a_compressed_downlink():
    class Personal(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            row = from_record(LAYOUT, arrays)
            for i, message in enumerate(messages):
                record = to_record(LAYOUT, row + np.float32(i), {})
                message.content = RecordDict({"arrays": record, "config": config})
            return messages

    with pytest.raises(ConfigError, match="different models at once"):
        run(None, Personal(min_train_nodes=CLIENTS), downlink=Cast("bf16"), rounds=1)


@pytest.mark.slow
def test_actors_do_not_change_a_run_over_a_compressed_downlink():
    channels = {"channel": ErrorFeedback(TopK(density=0.1)), "downlink": EF21(TopK(density=0.2))}
    serial = run(**channels, rounds=5)
    ray = run(**channels, rounds=5, executor=RayExecutor(num_actors=2, max_batch=2))
    assert serial.summary["trace_sha256"] == ray.summary["trace_sha256"]
    np.testing.assert_allclose(vector(serial.arrays), vector(ray.arrays), atol=1e-5)
