"""Vectors beside the model over compressed links: each by itself, as the model is."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from hydra import compose, initialize_config_module

from fl import simulate, strategies
from fl.clients import Downlink, Uplink
from fl.clients.app.uplink import PAYLOAD_KEY, PAYLOAD_STYPE, next_key
from fl.compression import (
    EF21,
    ErrorFeedback,
    Identity,
    PayloadError,
    Receivers,
    Shapes,
    TopK,
    UniformQuantizer,
)
from fl.errors import ConfigError
from fl.flower.private import give_id, set_identity
from fl.flower.records import record_vector, to_record, vector_record
from fl.randomness import SEED_KEY
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.strategies import Exchange
from fl.strategies.drivers.codec import Codec
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor

D = 40
LAYOUT = Layout.of_vector("w", D)
SHAPES = Shapes.trained(LAYOUT)
NODE = 7


class Faults:
    """A control that counts what is refused."""

    def __init__(self):
        self.refused = []

    def rejected(self, message_id):
        self.refused.append(message_id)


class Pair:
    """A server and one client of it, with w, c down and the change of w, delta_c up."""

    def __init__(self, uplink=None, downlink=None, seed=0):
        set_identity(run_id=1, node_id=1)
        self.rng, self.sent = np.random.default_rng(seed), 0
        exchange = Exchange(uplink, downlink, num_clients=1, layout=LAYOUT)
        self.control = Faults()
        self.codec = Codec(exchange, self.control, carries=["c"], needs=["delta_c"])
        self.up = uplink and Uplink(uplink, vectors=["delta_c"])
        self.down = downlink and Downlink(downlink, vectors=["c"])
        self.context = Context(1, NODE, {"partition-id": 0}, RecordDict(), {SEED_KEY: 0})

    def row(self):
        return self.rng.standard_normal(D).astype(np.float32)

    def exchange(self, *, change=None, delta_c=None, c=None, lost=False, damage=None):
        """Sends w and c, has the client reply, and returns what each end got."""
        self.w = self.row()
        self.c = self.row() if c is None else c
        records = {
            "arrays": to_record(LAYOUT, self.w),
            "config": ConfigRecord({"server-round": 1}),
            "c": vector_record(as_tensor(self.c)),
        }
        (packed,) = self.codec.pack([Message(RecordDict(records), NODE, "train")])
        self.sent += 1
        give_id(packed.message, f"m{self.sent}")
        self.codec.sent([f"m{self.sent}"], [packed])
        self.message, opened = packed.message, packed.message.content
        if self.down:
            opened, kept = self.down.open(LAYOUT, opened, self.context)
            self.context.state.update(kept)
        self.got_c = record_vector(opened["c"], D, "c").numpy()
        held = opened["arrays"]["w"].numpy()
        self.change = self.row() if change is None else change
        self.delta_c = self.row() if delta_c is None else delta_c
        vector = vector_record(as_tensor(self.delta_c)) if len(self.delta_c) else ArrayRecord()
        model = to_record(LAYOUT, held + self.change) if len(self.change) else ArrayRecord()
        self.content = RecordDict({"arrays": model, "delta_c": vector})
        if self.up:
            self.content = self.up.pack(LAYOUT, held, self.content, self.message, self.context)
        if lost:
            return None
        if damage:
            damage(self.content)
        reply = Message(self.content, reply_to=self.message)
        reply.metadata.__dict__["_src_node_id"] = NODE
        return self.codec.open(reply)

    def kept(self, name):
        record = self.context.state.array_records.get(name, {})
        return {key: array.numpy() for key, array in record.items()}

    def told(self):
        return {k: v for k, v in self.message.content["config"].items() if k != "server-round"}


def payload(data):
    return ArrayRecord({PAYLOAD_KEY: Array("uint8", (len(data),), PAYLOAD_STYPE, data)})


def test_through_a_channel_that_loses_nothing_vectors_keep_their_bits():
    pair = Pair(Identity(), Identity())
    reply = pair.exchange()
    np.testing.assert_array_equal(pair.got_c, pair.c)
    read = record_vector(reply.content["delta_c"], D, "delta_c").numpy()
    np.testing.assert_array_equal(read, pair.delta_c)
    (payload,) = pair.content["delta_c"].values()
    assert payload.stype == PAYLOAD_STYPE


def test_what_error_feedback_holds_back_of_a_vector_is_its_own():
    channel = ErrorFeedback(TopK(density=0.1))
    pair, sums = Pair(channel), {"change": 0.0, "delta_c": 0.0}
    got = {"change": 0.0, "delta_c": 0.0}
    for _ in range(5):
        reply = pair.exchange()
        sums["change"] = sums["change"] + pair.change
        sums["delta_c"] = sums["delta_c"] + pair.delta_c
        got["change"] = got["change"] + reply.content["arrays"]["w"].numpy() - pair.w
        read = record_vector(reply.content["delta_c"], D, "delta_c").numpy()
        assert np.count_nonzero(read) == 4
        got["delta_c"] = got["delta_c"] + read
    for name, key in (("change", "fl.uplink"), ("delta_c", "fl.uplink.delta_c")):
        rest = sums[name] - got[name]
        assert np.abs(rest).max() > 0.1
        np.testing.assert_allclose(pair.kept(key)["e"], rest, atol=1e-5)


def test_a_vectors_payload_is_that_of_the_channel_and_draws_its_own_numbers():
    pair = Pair(UniformQuantizer(bits=4))
    same = pair.row()
    pair.exchange(change=same, delta_c=same)
    of_model, of_vector = (pair.content[key][PAYLOAD_KEY].data for key in ("arrays", "delta_c"))
    least, most = UniformQuantizer(bits=4).length(SHAPES)
    assert least <= len(of_vector) <= most < 4 * D
    assert of_vector != of_model  # rounded by other draws


def test_a_vector_follows_the_downlink_as_the_model_does():
    pair, c = Pair(downlink=EF21(TopK(density=0.2))), np.arange(1, D + 1, dtype=np.float32)
    first = pair.exchange(c=c)
    assert not first.has_error()
    far = [np.linalg.norm(pair.got_c - c)]
    for i in range(8):
        pair.exchange(c=(1 + 1e-6 * i) * c)  # the same vector again would be no new version
        far.append(np.linalg.norm(pair.got_c - c))
        (h,) = (v for v in pair.kept("fl.downlink.c").values() if v.shape == (D,))
        np.testing.assert_array_equal(h, pair.got_c)
    assert far[-1] < 1e-3
    size = sum(len(array.data) for array in pair.message.content["c"].values())
    assert size < 4 * D / 2


def test_an_empty_vector_and_the_model_that_came_do_not_travel_and_leave_the_other():
    pair, none = Pair(EF21(TopK(density=0.2))), np.empty(0, np.float32)
    reply = pair.exchange(delta_c=none)
    assert not len(reply.content["delta_c"])
    assert "fl.uplink.delta_c" not in pair.context.state
    reply = pair.exchange(change=none)
    assert not len(reply.content["arrays"])
    np.testing.assert_allclose(
        record_vector(reply.content["delta_c"], D, "delta_c").numpy(), pair.delta_c, atol=1e-6
    )  # EF21's first message is whole


def test_after_a_lost_reply_each_vector_is_told_its_own_number():
    pair, none = Pair(EF21(TopK(density=0.2))), np.empty(0, np.float32)
    pair.exchange()
    pair.exchange(delta_c=none)  # of one vector there are fewer messages
    pair.exchange(lost=True)
    reply = pair.exchange()
    assert pair.told() == {next_key(): 2, next_key("delta_c"): 1}
    assert not reply.has_error()
    pair.exchange()
    assert pair.told() == {}


def test_a_client_that_sends_nothing_of_a_vector_after_a_loss_is_told_again():
    pair, none = Pair(EF21(TopK(density=0.2))), np.empty(0, np.float32)
    pair.exchange()
    pair.exchange(lost=True)
    pair.exchange(delta_c=none)
    assert not pair.exchange().has_error()
    assert pair.told() == {next_key("delta_c"): 1}


HOSTILE = {
    "empty": lambda data: payload(b"?"),
    "cut": lambda data: payload(data[:-1]),
    "longer": lambda data: payload(data + b"\0"),
    "bits": lambda data: payload(b"\xff" * len(data)),
    "whole": lambda data: vector_record(as_tensor(np.zeros(D, np.float32))),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("channel", [TopK(density=0.2), EF21(TopK(density=0.2))], ids=repr)
def test_a_hostile_payload_of_a_vector_is_refused_and_the_model_beside_it_is_not_kept(
    channel, kind
):
    def damage(content):
        content["delta_c"] = HOSTILE[kind](content["delta_c"][PAYLOAD_KEY].data)

    pair = Pair(channel)
    pair.exchange()
    assert pair.exchange(damage=damage).has_error()
    assert pair.control.refused == ["m2"]
    reply = pair.exchange()  # what the server keeps of the model is that of the first message
    assert not reply.has_error()
    if isinstance(channel, EF21):
        assert pair.told() == {next_key(): 1, next_key("delta_c"): 1}


def test_a_vector_that_is_not_finite_is_shown_to_the_strategy_as_such():
    pair = Pair(ErrorFeedback(TopK(density=0.2)))
    reply = pair.exchange(delta_c=np.full(D, np.inf, np.float32))
    assert not pair.content["delta_c"][PAYLOAD_KEY].data
    with pytest.raises(ConfigError, match="delta_c"):
        record_vector(reply.content["delta_c"], D, "delta_c")


def test_different_vectors_at_once_are_refused_on_a_compressed_downlink():
    pair = Pair(downlink=Identity())
    messages = [
        Message(
            RecordDict(
                {
                    "arrays": to_record(LAYOUT, np.zeros(D, np.float32)),
                    "c": vector_record(as_tensor(pair.row())),
                }
            ),
            node,
            "train",
        )
        for node in (1, 2)
    ]
    with pytest.raises(ConfigError, match="'c'"):
        pair.codec.pack(messages)


def test_a_client_whose_message_went_wrong_is_sent_whole_vectors_again():
    pair = Pair(downlink=EF21(TopK(density=0.2)))
    pair.exchange()
    for _ in range(2):
        pair.exchange()
        del pair.context.state["fl.downlink.c"]
        with pytest.raises(PayloadError):
            pair.exchange()
        reply = Message(Error(0, "lost its memory"), reply_to=pair.message)
        reply.metadata.__dict__["_src_node_id"] = NODE
        pair.codec.open(reply)
        assert not pair.exchange().has_error()


def test_the_bound_on_what_a_server_keeps_counts_every_vector():
    channel = EF21(TopK(density=0.2))
    each = Receivers(channel, SHAPES, 3, 2**30).nbytes
    Receivers(channel, SHAPES, 3, 2 * each, vectors=2)
    with pytest.raises(ConfigError, match=str(2 * each)):
        Receivers(channel, SHAPES, 3, 2 * each - 1, vectors=2)


def test_what_a_rule_calls_exact_is_not_compressed():
    rounds = {
        name: strategies.Rounds(rule).traits
        for name, rule in (
            ("savic", strategies.SAVIC()),
            ("scaffold", strategies.SCAFFOLD(num_clients=4)),
        )
    }
    assert (rounds["savic"].compressed_carries, rounds["savic"].compressed_needs) == ((), ())
    assert rounds["scaffold"].compressed_carries == ("c",)
    assert rounds["scaffold"].compressed_needs == ("delta_c",)


# ---- whole runs ----------------------------------------------------------------------------------


def ran(*overrides):
    common = ["num_clients=4", "num_rounds=3", "fleet=uniform", "executor=serial", "data=digits"]
    common += ["client.local_epochs=null", "client.local_steps=3", "strategy.min_train_nodes=3"]
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", overrides=[*common, *overrides])
    experiment = build(config)

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)

    return experiment, simulate(
        server,
        app_of(experiment),
        experiment.fleet,
        executor="serial",
        progress=False,
        seed=config.seed,
    )


def model_of(result):
    return np.concatenate([array.numpy().ravel() for array in result.arrays.values()])


def test_scaffold_whose_compressors_keep_all_entries_is_scaffold():
    whole = "compressor=topk", "compressor.density=1.0", "compressor@downlink=none"
    plain, packed = ran("strategy=scaffold")[1], ran("strategy=scaffold", *whole)[1]
    np.testing.assert_allclose(model_of(packed), model_of(plain), atol=1e-5)


def test_scaffold_is_charged_for_two_payloads_each_way():
    links = "compressor=int8", "compressor@downlink=int8"
    experiment, scaffold = ran("strategy=scaffold", *links)
    _, fedavg = ran("strategy=fedavg", *links)
    d = experiment.app.layout.size
    for way in ("bytes_up", "bytes_down"):
        more = scaffold.summary["totals"][way] - fedavg.summary["totals"][way]
        more /= 3 * 3  # rounds, clients
        assert d <= more <= d + 100  # a byte an entry, its scale and its names
