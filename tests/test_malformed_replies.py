"""A Byzantine client can send anything at all: it never stops the server, nor reaches the model."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl import simulate
from fl.aggregation import Krum, TrimmedMean
from fl.randomness import generator
from fl.simulation.cost import CostModel
from fl.simulation.kernel.trace import Event
from fl.simulation.world.fleets import uniform
from fl.strategies import FedAvg, Rounds

CLIENTS, BAD, ROUNDS = 100, 40, 25  # 1,000 malformed replies
START = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float32)}
PICKLE = b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94"


def arrays(value=1.0, **changed):
    """What an honest client sends, with some entries replaced, or removed by None."""
    entries = {name: Array(start + np.float32(value)) for name, start in START.items()} | changed
    return ArrayRecord({name: array for name, array in entries.items() if array is not None})


def metrics(**changed):
    entries = {"num-examples": 10, "train-loss": 0.5} | changed
    return MetricRecord({name: value for name, value in entries.items() if value is not None})


def content(record=None, reported=None):
    items = {"arrays": record or arrays(), "metrics": reported or metrics()}
    return RecordDict({name: item for name, item in items.items() if item != "none"})


def noisy(rng, shape, dtype=np.float32):
    return Array((1e3 * rng.standard_normal(shape)).astype(dtype))


def matrix(data, dtype="float32", stype="numpy.ndarray"):
    return Array(dtype, (3, 2), stype, data)


def random_bytes(rng):
    return bytes(rng.integers(0, 256, int(rng.integers(0, 200)), dtype=np.uint8))


def some(rng, values):
    return values[int(rng.integers(len(values)))]


def not_finite(rng):
    w = START["w"] + np.float32(1)
    w[int(rng.integers(3)), int(rng.integers(2))] = some(rng, [np.nan, np.inf, -np.inf])
    return arrays(w=Array(w))


def false_header(rng):
    honest = Array(START["w"]).data
    shape = some(rng, [(3, 2), (10**9, 10**9), (2**62,), (-1,), (3, -2), ()])
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = honest[:8] + len(text).to_bytes(2, "little") + text.encode() + random_bytes(rng)
    return arrays(w=Array("float32", some(rng, [(3, 2), shape]), "numpy.ndarray", data))


# Each returns the arrays of a reply, given a generator.
BROKEN_ARRAYS = [
    lambda rng: "none",
    lambda rng: ConfigRecord({"w": 1}),
    lambda rng: MetricRecord({"w": 1.0}),
    lambda rng: ArrayRecord(),
    lambda rng: arrays(w=None),
    lambda rng: arrays(v=Array(START["w"])),
    lambda rng: arrays(w=None, **{"": Array(START["w"])}),
    lambda rng: arrays(w=noisy(rng, tuple(int(k) for k in rng.integers(0, 5, rng.integers(0, 4))))),
    lambda rng: arrays(b=noisy(rng, (int(rng.integers(5, 100_000)),))),
    lambda rng: arrays(w=noisy(rng, (2, 3))),
    lambda rng: arrays(w=noisy(rng, (3, 2), some(rng, ["f8", ">f4", "f2", "i4", "?", "c8"]))),
    lambda rng: arrays(w=Array(np.array([["a", "b"]] * 3))),
    lambda rng: arrays(w=matrix(random_bytes(rng))),
    lambda rng: arrays(w=matrix(Array(START["w"]).data[:-3])),
    lambda rng: arrays(w=matrix(b"\0" * 24, stype=some(rng, ["", "fl.payload", "torch"]))),
    lambda rng: arrays(w=matrix(PICKLE, some(rng, ["object", "", "float3", "<f4"]))),
    lambda rng: arrays(w=Array("object", (1,), "numpy.ndarray", PICKLE)),
    false_header,
    not_finite,
    lambda rng: arrays(float(rng.standard_normal()) * 10.0 ** int(rng.integers(-40, 39))),
    lambda rng: arrays(w=Array(np.full((3, 2), some(rng, [3e38, -3e38, 1e-44]), np.float32))),
]
BROKEN_METRICS = [
    lambda rng: "none",
    lambda rng: ConfigRecord({"num-examples": "many"}),
    lambda rng: MetricRecord(),
    lambda rng: metrics(**{"num-examples": None}),
    lambda rng: metrics(**{"num-examples": some(rng, [-1, 0, -(2**70), 10**400, 2**63])}),
    lambda rng: metrics(**{"num-examples": some(rng, [np.nan, np.inf, -np.inf, 1e308, -0.5])}),
    lambda rng: metrics(**{"num-examples": some(rng, [[1, 2], [], [np.nan]])}),
    lambda rng: metrics(**{"train-loss": None}),
    lambda rng: metrics(**{"train-loss": some(rng, [np.nan, np.inf, 10**400, [1.0, 2.0], []])}),
    lambda rng: metrics(**{some(rng, ["", "accuracy", "x" * 1000]): some(rng, [1, 0.5, [3.0]])}),
]


def reply_content(rng):
    kind = int(rng.integers(3))
    record = some(rng, BROKEN_ARRAYS)(rng) if kind != 1 else None
    reported = some(rng, BROKEN_METRICS)(rng) if kind != 0 else None
    return content(record, reported)


def malformed(rng, message):
    form = int(rng.integers(20))
    if form == 0:
        raise RuntimeError("out of disk")
    if form == 1:
        return some(rng, [None, b"\0" * 9, {"arrays": START}, 7, np.zeros(3)])
    if form == 2:
        return Message(RecordDict(), reply_to=message)
    if form == 3:
        reply = Message(RecordDict(), reply_to=message)
        reply.content = some(rng, [b"model", "model", 3, None])
        return reply
    if form == 4:
        return Message(Error(int(rng.integers(-5, 99)), "made up"), reply_to=message)
    return Message(reply_content(rng), reply_to=message)


def is_bad(client):
    return client % 2 == 0 and client < 2 * BAD


def app():
    made = ClientApp()

    @made.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        if not is_bad(client):
            model = {name: a.numpy() + 1 for name, a in message.content["arrays"].items()}
            record = ArrayRecord({name: Array(a) for name, a in model.items()})
            return Message(content(record), reply_to=message)
        return malformed(generator(3, "malformed", message.metadata.message_id), message)

    return made


@pytest.mark.parametrize("rule", [TrimmedMean(f=BAD), Krum(f=BAD)], ids=["trimmed mean", "Krum"])
def test_a_thousand_malformed_replies_neither_stop_the_server_nor_reach_the_model(rule, tmp_path):
    strategy = Rounds(FedAvg(), aggregator=rule, min_train_nodes=CLIENTS)
    models = []

    def server(grid, context, recorder):
        result = strategy.start(
            grid,
            ArrayRecord({name: Array(start) for name, start in START.items()}),
            num_rounds=ROUNDS,
            timeout=1000,
            evaluate_fn=lambda r, record: models.append(record),
        )
        recorder.final(result.arrays)

    run = simulate(
        server,
        app(),
        uniform(num_clients=CLIENTS, seed=0),
        executor="serial",
        cost_model=CostModel(
            flops_per_example=1e-300
        ),  # who claims a lot of work would be busy with it
        directory=tmp_path,
        progress=False,
    )
    assert run.summary["status"] == "completed"
    sent = np.array(run.trace.kind) == Event.UPLOAD_END
    bad = np.isin(run.trace.client, [c for c in range(CLIENTS) if is_bad(c)])
    assert (sent & bad).sum() == BAD * ROUNDS == 1000
    for r, record in enumerate(models):
        for name, start in START.items():
            np.testing.assert_allclose(record[name].numpy(), start + r, rtol=0)
    faults = run.summary["faults"]
    # Most were found out one way or another; the others were vectors, and up to the rule.
    assert 500 < faults["rejected"] < 800
    assert 100 < faults["client_error"] < 300
