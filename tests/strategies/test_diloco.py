"""Outer steps: what they equal in their limits, and what they do to models, against torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from islands import (
    ADAMW,
    AVERAGE,
    DATA,
    LAYOUT,
    MODEL,
    PLAIN,
    SGD,
    Nesterov,
    app_of,
    crashing,
    driven,
    of,
    references,
    run,
)

from fl import simulate
from fl.clients import AdamW, CosineDecay, Gradient, Sgd, TrainingApp, Warmup
from fl.clients.app.island import fragment_record
from fl.compression import Cast
from fl.errors import ConfigError, SimulationError
from fl.flower.private import give_id
from fl.flower.records import from_record
from fl.randomness import SEED_KEY
from fl.simulation.kernel.trace import Event
from fl.simulation.world.fleets import uniform
from fl.strategies import (
    DataParallel,
    DelayedUpdates,
    DiLoCo,
    EagerUpdates,
    LocalSGD,
    OuterAdam,
    OuterGradients,
    OuterSgd,
    OuterSteps,
    StreamingDiLoCo,
)

# ---- outer optimizers ----------------------------------------------------------------------------


def steps_of(rule, deltas, theta=0.0):
    theta = np.full(len(deltas[0]), theta, dtype=np.float32)
    state, path = rule.init(len(theta)), [theta]
    for t, delta in enumerate(deltas):
        theta, state = rule.step(theta, np.asarray(delta, dtype=np.float64), state, t)
        path.append(theta)
    return np.array(path)


def test_the_first_step_moves_by_1_33_deltas_and_a_constant_one_in_the_end_by_7():
    path = steps_of(OuterSgd(lr=0.7, momentum=0.9), [[1.0]] * 200)
    moves = -np.diff(path.ravel())
    assert moves[0] == pytest.approx(0.7 * 1.9, abs=1e-6)
    assert moves[-1] == pytest.approx(0.7 / (1 - 0.9), abs=1e-4)


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        (OuterSgd(0.7, 0.9), partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)),
        (OuterSgd(0.3, 0.8, False), partial(torch.optim.SGD, lr=0.3, momentum=0.8)),
        (OuterSgd(0.3, 0.0, False), partial(torch.optim.SGD, lr=0.3)),
        (
            OuterAdam(0.1, 0.9, 0.95, 1e-6, 0.1),
            partial(torch.optim.AdamW, lr=0.1, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1),
        ),
    ],
    ids=["nesterov", "momentum", "sgd", "adamw"],
)
def test_outer_optimizers_are_torchs(rule, other):
    deltas = np.random.default_rng(0).normal(size=(12, 5))
    parameter = torch.nn.Parameter(torch.full((5,), 0.5, dtype=torch.float64))
    optimizer = other([parameter])
    for delta in deltas:
        parameter.grad = torch.tensor(delta)
        optimizer.step()
    got = steps_of(rule, deltas, 0.5)[-1]
    np.testing.assert_allclose(got, parameter.detach().numpy(), rtol=2e-6, atol=1e-6)


def test_a_schedule_scales_the_outer_steps():
    path = steps_of(OuterSgd(1.0, 0.0, False, schedule=CosineDecay(2)), [[1.0]] * 3).ravel()
    np.testing.assert_allclose(-np.diff(path), [1.0, 0.5, 0.0], atol=1e-7)


def test_equal_weights_are_the_plain_mean_and_survivors_share_it():
    vectors = {7: np.array([1.0, 2.0]), 3: np.array([3.0, 6.0])}
    np.testing.assert_array_equal(OuterGradients(vectors).mean(), [2.0, 4.0])
    np.testing.assert_array_equal(OuterGradients(vectors, {3: 5.0, 7: 5.0}).mean(), [2.0, 4.0])
    np.testing.assert_array_equal(OuterGradients(vectors, {3: 1.0, 7: 3.0}).mean(), [1.5, 3.0])
    np.testing.assert_array_equal(OuterGradients({3: vectors[3]}, {3: 0.1}).mean(), [3.0, 6.0])


# ---- equalities ----------------------------------------------------------------------------------


def trained_plainly(rule, steps):
    app = TrainingApp(
        MODEL,
        DATA[1],
        rule,
        batch_size=None,
        local_epochs=None,
        local_steps=steps,
        shuffle=False,
        batching="off",
    )
    content = RecordDict({"arrays": ArrayRecord(MODEL().state_dict()), "config": ConfigRecord({})})
    message = Message(content, 1, "train")
    give_id(message, "0.0")
    node = {"partition-id": 0, "num-partitions": 1}
    reply = app(message, Context(0, 0, node, RecordDict(), {SEED_KEY: 0}))
    return from_record(LAYOUT, reply.content["arrays"])


@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_one_worker_with_an_outer_step_of_1_trains_as_if_there_were_none(rule):
    got = run(DiLoCo(inner_steps=4, optimizer=AVERAGE), 3, workers=1, rule=rule, batching="off")
    assert got.rows[-1].tobytes() == trained_plainly(rule, 12).tobytes()


def test_the_inner_schedule_follows_the_global_step():
    schedule = Warmup(3, CosineDecay(9, floor=0.1))
    rule = AdamW(lr=0.02, keep_moments=True, step_schedule=schedule)
    got = run(LocalSGD(inner_steps=4), 3, workers=1, rule=rule, batching="off")
    assert got.rows[-1].tobytes() == trained_plainly(rule, 12).tobytes()
    constant = AdamW(lr=0.02, keep_moments=True)
    assert np.abs(got.rows[-1] - trained_plainly(constant, 12)).max() > 1e-3


def test_with_an_outer_step_of_1_it_is_flowers_fedavg():
    # "steps" is equal for all: FedAvg with equal weights.
    fedavg = FedAvg(
        fraction_evaluate=0.0, min_available_nodes=3, min_train_nodes=3, weighted_by_key="steps"
    )
    # The same messages, in mini-batches of a random order, to the same clients.
    app = {"workers": 3, "batch_size": 16}
    data = DATA[3]
    rows = []

    def server(grid, context, recorder):
        fedavg.start(
            grid,
            ArrayRecord(MODEL().state_dict()),
            num_rounds=3,
            train_config=ConfigRecord({"local-steps": 5}),
            evaluate_fn=lambda _, arrays: rows.append(from_record(LAYOUT, arrays)),
        )

    fleet = uniform(num_clients=3, seed=0)
    simulate(server, app_of(fedavg, data, batch_size=16), fleet, executor="serial", progress=False)
    for strategy in (LocalSGD(inner_steps=5), DiLoCo(inner_steps=5, optimizer=AVERAGE)):
        got = run(strategy, 3, **app)
        np.testing.assert_allclose(got.rows, rows, atol=1e-6)
    assert np.abs(rows[-1] - rows[0]).max() > 0.1


@pytest.mark.parametrize(
    ("strategy", "rule", "outer"),
    [
        (LocalSGD(inner_steps=1), SGD, (0.2, 0.0)),
        (DiLoCo(inner_steps=1, optimizer=OuterSgd(0.7, 0.9)), SGD, (0.14, 0.9)),
        (DataParallel(optimizer=OuterSgd(0.2, 0.9)), Gradient(), (0.2, 0.9)),
    ],
    ids=["local_sgd", "diloco", "data_parallel"],
)
def test_steps_of_1_are_data_parallel_sgd_on_all_examples(strategy, rule, outer):
    strategy = driven(strategy, workers=3, weighted_by_key="num-examples")
    got = run(strategy, 6, workers=3, rule=rule)
    (everyone,) = references(1, Sgd(lr=1.0))
    everyone.optimizer = torch.optim.SGD(
        everyone.model.parameters(), outer[0], outer[1], nesterov=outer[1] > 0
    )
    everyone.train(6)
    np.testing.assert_allclose(got.rows[-1], everyone.w, atol=2e-6)


def test_data_parallel_adamw_is_adamw_on_all_examples():
    adamw = DataParallel(optimizer=OuterAdam(0.01, 0.9, 0.999, 1e-8, 0.01))
    strategy = driven(adamw, workers=3, weighted_by_key="num-examples")
    got = run(strategy, 6, workers=3, rule=Gradient())
    (everyone,) = references(1, AdamW(lr=0.01))
    everyone.train(6)
    # Adam divides by the size of gradients, so rounding of the smallest ones shows.
    np.testing.assert_allclose(got.rows[-1], everyone.w, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        partial(DiLoCo, inner_steps=6),
        partial(StreamingDiLoCo, inner_steps=6, fragments=3, overlap=1),
        partial(DelayedUpdates, inner_steps=6),
    ],
    ids=["diloco", "streaming", "delayed"],
)
def test_of_identical_workers_any_number_is_one(make):
    alone, four = (
        run(make(), 3, workers=m, data=DATA[1], rule=ADAMW, batching="off") for m in (1, 4)
    )
    np.testing.assert_array_equal(alone.rows, four.rows)


def test_moments_stay_with_workers_unless_the_client_is_told_otherwise():
    def trained(keep):
        rule = AdamW(lr=0.01, keep_moments=keep)
        return run(DiLoCo(inner_steps=3), 3, rule=rule).rows[-1]

    np.testing.assert_array_equal(trained(None), trained(True))
    assert np.abs(trained(None) - trained(False)).max() > 1e-3


# ---- DiLoCo --------------------------------------------------------------------------------------


def test_diloco_is_its_algorithm_with_torchs_optimizers():
    outer = OuterSgd(lr=0.7, momentum=0.9)
    got = run(DiLoCo(inner_steps=3, optimizer=outer), 4, workers=3, rule=ADAMW)
    workers = references(3, ADAMW)
    server = Nesterov(workers[0].w, outer)
    for version in range(1, 5):
        for worker in workers:
            worker.w = server.theta  # its moments stay
            worker.train(3)
        server.step(np.mean([server.theta - worker.w for worker in workers], axis=0))
        np.testing.assert_allclose(got.rows[version], server.theta, atol=3e-5)
    assert np.abs(got.rows[-1] - got.rows[0]).max() > 0.1


def test_the_worker_whose_outer_gradient_is_dropped_goes_on_from_its_own_parameters():
    class First(OuterSteps):
        def _drops(self, worker, key):
            return worker.node == min(nodes) and key[1] == 2

    nodes = [2, 3]
    strategy = driven(DiLoCo(inner_steps=2, optimizer=PLAIN), strategy=First, drop=0.5)
    got = run(strategy, 3)
    a, b = references(2, SGD)
    theta = a.w
    a.train(2), b.train(2)
    theta1 = theta - 0.5 * (theta - b.w)  # the mean is over those that are there
    b.w = theta1
    a.train(2), b.train(2)  # a did not hear of theta1, and measures against theta
    theta2 = theta1 - 0.5 * ((theta - a.w) + (theta1 - b.w)) / 2
    a.w = b.w = theta2
    a.train(2), b.train(2)
    theta3 = theta2 - 0.5 * (2 * theta2 - a.w - b.w) / 2
    for version, expected in enumerate((theta, theta1, theta2, theta3)):
        np.testing.assert_allclose(got.rows[version], expected, atol=2e-6)
    assert got.run.trace.counts[Event.DISCARDED] == 1
    assert [row["bytes"] for row in of(got.run.trace, Event.ALL_REDUCE)] == [0] + [
        4 * LAYOUT.size
    ] * 4


def test_outer_gradients_are_dropped_with_the_given_probability():
    strategy = driven(DiLoCo(inner_steps=1), workers=4, drop=0.3, seed=3)
    got = run(strategy, 100, workers=4)
    assert got.run.trace.counts[Event.DISCARDED] == pytest.approx(120, abs=4 * 84**0.5)
    assert got.run.trace.counts[Event.APPLIED] + got.run.trace.counts[Event.DISCARDED] == 400


def test_after_a_crash_the_mean_is_over_survivors_and_the_worker_begins_with_theta():
    got = run(DiLoCo(inner_steps=2, optimizer=PLAIN), 3, rule=ADAMW, fleet=crashing((0, 1)))
    a, b = references(2, ADAMW)
    rows = [a.w]
    for version in range(3):
        for worker in (a, b):
            worker.w = rows[-1]
        if version == 2:
            a.forget()  # its moments are lost too
        a.train(2), b.train(2)
        present = [b] if version == 1 else [a, b]
        theta = rows[-1]
        rows.append(theta - 0.5 * np.mean([theta - worker.w for worker in present], axis=0))
    np.testing.assert_allclose(got.rows, rows, atol=3e-5)
    islands = [got.result.train_metrics_clientapp[v]["islands"] for v in range(4)]
    assert islands == [0, 2, 1, 2]
    # The one that returns fetches the model from the other, on their direct link.
    (transfer,) = of(got.run.trace, Event.TRANSFER)
    assert (transfer["client"], transfer["value"], transfer["bytes"]) == (0, 1.0, 4 * LAYOUT.size)


def test_a_joiner_of_prime_sits_out_a_phase_and_counts_with_an_outer_gradient_of_0():
    """It has the outer parameters and the momentum from a peer, and the others wait for that."""
    outer = OuterSgd(lr=0.5, momentum=0.9, nesterov=True)
    fleet = crashing((0, 1))
    strategy = driven(DiLoCo(inner_steps=2, optimizer=outer), joiners="zero")
    got = run(strategy, 4, fleet=fleet)
    a, b = references(2, SGD)
    rows, nesterov = [a.w], Nesterov(a.w, outer)
    for version in range(4):
        for worker in (a, b):
            worker.w = rows[-1]
            worker.train(2)
        deltas = [rows[-1] - worker.w for worker in (a, b)]
        if version == 1:
            del deltas[0]  # it has crashed
        if version == 2:
            deltas[0] = 0 * deltas[0]
        nesterov.step(np.mean(deltas, axis=0))
        rows.append(nesterov.theta)
    np.testing.assert_allclose(got.rows, rows, atol=3e-5)
    islands = [got.result.train_metrics_clientapp[v]["islands"] for v in range(5)]
    assert islands == [0, 2, 1, 2, 2]
    (transfer,) = of(got.run.trace, Event.TRANSFER)
    assert transfer["bytes"] == 8 * LAYOUT.size
    phases = np.diff(got.times)
    alone, waits, both = phases[1:4]  # one alone has no all-reduce to do
    assert waits > both > alone
    assert got.times[3] - transfer["time_s"] == pytest.approx(both - phase_s(got), rel=1e-6)


def phase_s(got):
    """Returns the seconds of the inner steps of a run's first phase."""
    first = of(got.run.trace, Event.COMPUTE_END)[0]
    return first["time_s"]


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"joiners": "late"}, "joiners is 'late'; it must be train or zero"),
        ({"joiners": "zero", "weighted_by_key": "num-examples"}, "joiners is zero and weighted"),
        ({"joiners": "zero", "compressor": Cast("bf16")}, "joiners is zero and compressor is Cast"),
    ],
)
def test_joiners_without_steps_are_for_the_plain_mean_of_models(of, why):
    with pytest.raises(ConfigError, match=why):
        driven(DiLoCo(inner_steps=2), **of)
    with pytest.raises(ConfigError, match="joiners is zero and rule is EagerUpdates"):
        driven(EagerUpdates(inner_steps=2), joiners="zero")


def test_if_all_workers_crash_they_begin_again_where_the_outer_parameters_are():
    lost = run(DiLoCo(inner_steps=2), 3, rule=SGD, fleet=crashing((0, 1), (1, 1)))
    whole = run(DiLoCo(inner_steps=2), 3, rule=SGD)
    np.testing.assert_array_equal(lost.rows, whole.rows)
    assert (
        lost.run.trace.counts[Event.COMPUTE_START]
        == whole.run.trace.counts[Event.COMPUTE_START] + 2
    )


class Relay:
    """A grid without direct links, as deployments have none: only what Flower's grid can do."""

    def __init__(self, grid):
        self.grid, self.clock = grid, grid.clock
        self.get_node_ids, self.push_messages = grid.get_node_ids, grid.push_messages

    def pull_messages(self, names):
        return self.grid.pull_messages(names)


@pytest.mark.parametrize(
    ("rule", "compressor"),
    [
        (DiLoCo(inner_steps=4), None),
        (StreamingDiLoCo(inner_steps=6, fragments=3, overlap=4), Cast("e3m0")),
        (DelayedUpdates(inner_steps=4), None),
        (EagerUpdates(inner_steps=4), None),
    ],
    ids=["diloco", "streaming", "delayed", "eager"],
)
def test_without_direct_links_fragments_go_through_the_server_to_the_same_result(rule, compressor):
    class Relayed(OuterSteps):
        def start(self, grid, *args, **kwargs):
            return super().start(Relay(grid), *args, **kwargs)

    relayed = run(driven(rule, compressor=compressor, strategy=Relayed), 3, rule=ADAMW)
    direct = run(rule, 3, compressor=compressor, rule=ADAMW)
    np.testing.assert_array_equal(relayed.rows, direct.rows)
    totals = relayed.summary["totals"]
    whole = 4 * LAYOUT.size
    # The model once to each, then fragments: in all less than a model a round and way.
    assert 2 * whole < totals["bytes_down"] < 2 * 3.5 * (whole + 4000)
    assert 0 < totals["bytes_up"] < 2 * 3 * (whole + 4000)


@pytest.mark.parametrize(
    "fragment",
    [
        np.full(LAYOUT.size, np.nan, dtype=np.float32),
        np.zeros(LAYOUT.size - 1, dtype=np.float32),
        None,
    ],
    ids=["not finite", "too short", "missing"],
)
def test_an_outer_gradient_of_the_wrong_form_is_a_fault_and_its_worker_begins_again(fragment):
    class Corrupting(Relay):
        corrupted = False

        def __init__(self, grid):
            super().__init__(grid)
            self.control = grid.control

        def pull_messages(self, names):
            replies = list(self.grid.pull_messages(names))
            for reply in replies:
                if not self.corrupted and reply.metadata.src_node_id == min(self.get_node_ids()):
                    record = {} if fragment is None else {0: fragment}
                    reply.content["arrays"] = fragment_record(record)
                    self.corrupted = True
            return replies

    class Watched(OuterSteps):
        def start(self, grid, *args, **kwargs):
            return super().start(Corrupting(grid), *args, **kwargs)

    got = run(driven(DiLoCo(inner_steps=2, optimizer=AVERAGE), strategy=Watched), 2)
    assert got.run.trace.counts[Event.REJECTED] == 1
    a, b = references(2, SGD)
    b.train(2)
    np.testing.assert_allclose(got.rows[1], b.w, atol=2e-6)
    a.w = b.w
    a.train(2), b.train(2)
    np.testing.assert_allclose(got.rows[2], (a.w + b.w) / 2, atol=2e-6)


def test_workers_that_only_crash_end_the_run():
    fleet = crashing(*((0, k) for k in range(5000)), workers=1)
    with pytest.raises(SimulationError, match=r"in a row brought no outer gradient.*crash"):
        run(DiLoCo(inner_steps=2), 3, workers=1, fleet=fleet)
