"""Flower's strategies behind a guard: it leaves out what `fl.aggregation.Guard` leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from fl import simulate
from fl.aggregation import Guard
from fl.errors import NoStep, NotFinite
from fl.flower.records import layout_of
from fl.simulation.kernel.trace import Event
from fl.simulation.world.fleets import uniform
from fl.strategies import Exchange, Foreign

GOOD, NAN, ENDLESS = [1.0, 2.0], [1.0, np.nan], [-np.inf, 1.0]
REPLIES = {
    "all good": [(GOOD, 3), (GOOD, 1), (GOOD, 0)],
    "one NaN": [(GOOD, 3), (NAN, 1), (GOOD, 2)],
    "one weight": [(GOOD, 3), (GOOD, np.nan), (GOOD, -1)],
    "both in one": [(NAN, -1.0), (GOOD, 1)],
    "none finite": [(NAN, 3), (ENDLESS, 2)],
    "none with a weight": [(GOOD, np.inf), (GOOD, -1.0)],
    "of each": [(NAN, 1), (GOOD, -1.0)],
    "nobody weighs": [(GOOD, 0), (GOOD, 0.0)],
}


@pytest.mark.parametrize("knows_layout", [True, False])
@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
@pytest.mark.parametrize("said", REPLIES.values(), ids=REPLIES)
def test_what_a_guard_leaves_out_a_guarded_strategy_is_not_shown(said, inner, knows_layout):
    rows = [np.array(x, np.float32) for x, _ in said]
    weights = [weight for _, weight in said]
    dropped, why = [], None
    try:
        Guard()(rows, 2, weights, left_out=dropped.extend)
    except NoStep as error:
        why = error
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        model = ArrayRecord({"w": Array(rows[client])})
        metrics = MetricRecord({"num-examples": weights[client]})
        return Message(RecordDict({"arrays": model, "metrics": metrics}), reply_to=message)

    strategy = Foreign(inner(fraction_evaluate=0.0)).within(
        Exchange(layout=layout_of(start) if knows_layout else None)
    )

    def server(grid, context, recorder):
        recorder.final(strategy.start(grid, start, num_rounds=1).arrays)

    run = simulate(server, app, uniform(len(said), seed=0), executor="serial", progress=False)
    rejected = run.trace.client[run.trace.kind == Event.REJECTED]
    assert sorted(rejected) == [one.index for one in dropped]
    counts = run.trace.counts
    assert counts[Event.NOT_FINITE] == isinstance(why, NotFinite)
    assert counts[Event.NO_STEP] == (why is not None and not isinstance(why, NotFinite))
