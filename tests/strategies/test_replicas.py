"""Replicas: 1-bit Adam is Adam before its warm-up ends, DeMo and Just One Byte in their limits.

Also: all models equal, bytes as in the formulas, and who may not be missing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp
from stand_ins import Scripted

from fl import simulate
from fl.aggregation import Krum, Median
from fl.attacks import IPM, OwnSignFlip, SignFlip
from fl.clients import Gradient, TrainingApp
from fl.compression import (
    EF21,
    Cast,
    DecoupledMomentum,
    Demo,
    Identity,
    JustOneByte,
    OneBitAdam,
    OneByteSpsa,
    Shapes,
    Sign,
    TopK,
)
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError, SimulationError
from fl.flower.records import from_record
from fl.models import LogisticRegression, build, evaluate, per_example_loss
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleets import uniform
from fl.strategies import Exchange, Replicas
from fl.vectors.layout import Layout

WORKERS = 4
DATA = federate(load_digits, partial(partition.iid, num_partitions=WORKERS, seed=0))
MODEL = partial(build, LogisticRegression, DATA.input_shape, DATA.num_classes, 0)
LAYOUT = Layout.of(MODEL())
D = LAYOUT.size


def run(rule, rounds, wrap=None, fleet=None, batch_size=None, attack=None, uplink=None):
    liars = Exchange(uplink, attack=attack, byzantine=frozenset({1}), seed=0, layout=LAYOUT)
    of_clients, _ = Replicas(rule).ends(uplink, None)
    strategy = Replicas(rule).within(liars)
    app = TrainingApp(
        MODEL,
        DATA,
        Gradient(),
        batch_size=batch_size,
        local_epochs=None,
        local_steps=1,
        uplink=of_clients,
        downlink=of_clients,
    )
    initial = ArrayRecord(MODEL().state_dict())

    def server(grid, context, recorder):
        recorder.final(strategy.start(grid, initial, num_rounds=rounds).arrays)

    return simulate(
        server,
        wrap(app) if wrap else app,
        fleet or uniform(num_clients=WORKERS, seed=0),
        executor="serial",
        progress=False,
    )


def row(result):
    return from_record(LAYOUT, result.arrays)


def gradients(w):
    """The gradient of each worker's mean loss, shape (workers, d), float64."""
    model = MODEL().double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(w), model.parameters())
    rows = []
    for worker in range(WORKERS):
        x, y = (torch.as_tensor(part) for part in DATA.client(worker))
        loss = per_example_loss(model(x.double()), y).mean()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in parts]))
    return torch.stack(rows)


def gradient(w):
    """Their mean, float64."""
    return gradients(w).mean(dim=0)


def test_before_its_warm_up_ends_it_is_torchs_adam():
    # torch corrects the moments' bias, 1-bit Adam does not: with the learning rate of step t times
    # (1 - b1^t) / sqrt(1 - b2^t) and an eps that does not matter, torch's step is the same.
    lr, rounds = 0.01, 12
    got = row(run(OneBitAdam(WORKERS, warmup=rounds, lr=lr, eps=1e-12), rounds))
    w = from_record(LAYOUT, ArrayRecord(MODEL().state_dict())).astype(np.float64)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = torch.optim.Adam([parameter], lr, (0.9, 0.999), eps=1e-14)
    for t in range(1, rounds + 1):
        optimizer.param_groups[0]["lr"] = lr * (1 - 0.9**t) / (1 - 0.999**t) ** 0.5
        parameter.grad = gradient(parameter.detach().numpy())
        optimizer.step()
    expected = parameter.detach().numpy()
    assert np.abs(expected - w).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_without_compression_it_is_adam_with_a_frozen_variance():
    rule = OneBitAdam(WORKERS, warmup=4, lr=0.01, compressor=Identity())
    got = row(run(rule, 10))
    w = from_record(LAYOUT, ArrayRecord(MODEL().state_dict())).astype(np.float64)
    m = v = np.zeros(D)
    for t in range(10):
        g = gradient(w).numpy()
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g if t < 4 else v
        # Pixels that are always 0 have no gradient, hence no step.
        w = w - 0.01 * np.divide(m, np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(got, w, atol=5e-4)


def test_in_its_warm_up_it_is_adam_on_what_a_compressor_brings_of_the_gradients():
    """EF21 over the largest of four entries, by hand: h_i <- g_i, then h_i + C(g_i - h_i)."""
    n, rounds, shapes, rng = 3, 4, Shapes.vector(4), np.random.default_rng(0)
    rule = OneBitAdam(n, warmup=rounds, lr=0.1).through(EF21(TopK(k=1)))
    x = y = np.float32([1, -2, 3, -4])
    workers, server = [rule.init_worker(shapes) for _ in range(n)], rule.init_server(shapes)
    h, m, v = np.zeros((n, 4)), np.zeros(4), np.zeros(4)
    for t in range(rounds):
        payloads = []
        for i in range(n):
            g = (i + 1) * x + np.float32([0.0, i, 0.3, 1.0])
            payload, workers[i] = rule.send(g, shapes, workers[i], rng)
            payloads.append(payload)
            largest = np.abs(g - h[i]).argmax()
            entries = slice(largest, largest + 1) if t else slice(None)
            h[i, entries] = g[entries]
        message, server = rule.combine(payloads, shapes, server, rng)
        steps = [rule.apply(x, message, shapes, state) for state in workers]
        x, workers = steps[0][0], [state for _, state in steps]
        m, v = 0.9 * m + 0.1 * h.mean(axis=0), 0.999 * v + 0.001 * h.mean(axis=0) ** 2
        y = y - 0.1 * m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(x, y, rtol=1e-4)
    kept = {name for state in (server, *workers) for name in state}
    assert not [name for name in kept if name.startswith("gradients")]  # it is over


def test_a_compressor_of_the_warm_up_is_paid_for_in_it_alone():
    rule = OneBitAdam(WORKERS, warmup=2, lr=0.01)
    dense, half = run(rule, 3), run(rule, 3, uplink=Cast("bf16"))
    saved = dense.summary["totals"]["bytes_up"] - half.summary["totals"]["bytes_up"]
    payload = len(Cast("bf16").encode(np.zeros(D, np.float32), Shapes.of(LAYOUT), {}, None)[0])
    assert saved == 2 * WORKERS * (4 * D - payload)
    np.testing.assert_allclose(row(half), row(dense), atol=0.02)
    assert (row(half) != row(dense)).any()


def test_what_liars_would_send_is_known_though_their_compressors_remember():
    """EF21 over the identity decodes every gradient as it is, forged before or not."""
    seen = []

    class Spy(SignFlip):
        def forge(self, honest, own, scene):
            seen[-1].append(own.copy())
            return super().forge(honest, own, scene)

    for uplink in (None, EF21(Identity())):
        seen.append([])
        run(OneBitAdam(WORKERS, warmup=4, lr=0.01), 3, attack=Spy(), uplink=uplink)
    np.testing.assert_allclose(*seen, atol=1e-5)
    assert np.abs(seen[0]).max() > 1e-3


def test_where_nothing_goes_as_it_is_there_is_nothing_to_compress():
    for rule in (OneBitAdam(WORKERS, warmup=0, lr=0.1), JustOneByte(WORKERS, lr=0.1)):
        assert Replicas(rule).traits.compressors == "none"
        with pytest.raises(ConfigError, match="compressor is Cast"):
            Replicas(rule).within(Exchange(Cast("bf16")))


RULES = {
    "onebit_adam": OneBitAdam(WORKERS, warmup=3, lr=0.01),
    "demo": DecoupledMomentum(WORKERS, lr=0.01, compressor=Demo(k=4, chunk=8)),
    "just_one_byte": JustOneByte(WORKERS, lr=0.01, compressor=OneByteSpsa(samples=4)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_all_workers_hold_the_servers_model_after_every_step(rule):
    seen = []

    def spying(app):
        outer = ClientApp()

        @outer.train()
        def train(message, context):
            reply = app(message, context)
            state = context.state["fl.replica"]
            seen.append([state[name].numpy() for name in ("x", "m", "v") if name in state])
            return reply

        return outer

    rounds = 8
    final = row(run(rule, rounds, spying, batch_size=16))
    assert len(seen) == rounds * WORKERS
    for t in range(rounds):
        of_round = seen[t * WORKERS : (t + 1) * WORKERS]
        for worker in of_round[1:]:
            for ours, first in zip(worker, of_round[0], strict=True):
                np.testing.assert_array_equal(ours, first)
    assert not np.array_equal(seen[-1][0], final), "the last message is still on the server"
    assert not np.array_equal(seen[-1][0], seen[0][0])


def test_bytes_are_those_of_the_formula():
    rule = OneBitAdam(WORKERS, warmup=3, lr=0.01)
    trace = run(rule, 6).trace
    kinds, sizes = np.array(trace.kind), np.array(trace.bytes)
    metrics = sum(len(name) + 8 for name in ("num-examples", "train-loss", "steps"))
    up = sizes[kinds == Event.UPLOAD_END].reshape(6, WORKERS) - len("update") - metrics
    assert (up[:3] == 11 + 4 * D).all()
    tensors = len(LAYOUT.entries)
    assert (up[3:] == 17 + 4 * tensors + -(-D // 8)).all()
    down = sizes[kinds == Event.DOWNLOAD_END].reshape(6, WORKERS) - len("server-round") - 8
    assert (down[1:4] - len("update") == 11 + 4 * D).all()
    assert (down[4:] - len("update") == 17 + 4 * WORKERS + -(-D // 8)).all()


@pytest.mark.parametrize(
    ("rule", "each"),
    [
        # 10 x 64 weights: 16 chunks of 5 x 8, of each 4 coefficients at 6 bits of index; biases.
        (RULES["demo"], lambda: 6 + 16 * 4 * 6 // 8 + 4 * (16 * 4 + 10)),
        (RULES["just_one_byte"], lambda: 14 + 4),
    ],
    ids=["demo", "just_one_byte"],
)
def test_bytes_of_gathered_messages_are_those_of_the_formula(rule, each):
    trace = run(rule, 3).trace
    kinds, sizes = np.array(trace.kind), np.array(trace.bytes)
    metrics = sum(len(name) + 8 for name in ("num-examples", "train-loss", "steps"))
    up = sizes[kinds == Event.UPLOAD_END] - len("update") - metrics
    assert (up == each()).all()
    down = sizes[kinds == Event.DOWNLOAD_END].reshape(3, WORKERS) - len("server-round") - 8
    assert (down[1:] - len("update") == 10 + WORKERS * each()).all()


def test_demo_with_every_coefficient_is_sign_descent_on_the_mean_gradient():
    # What is sent leaves the momentum, so nothing of it is left for the next step.
    rule = DecoupledMomentum(WORKERS, lr=0.01, compressor=Demo(k=64, chunk=8, vectors=True))
    got = row(run(rule, 3))
    w = from_record(LAYOUT, ArrayRecord(MODEL().state_dict())).astype(np.float64)
    for _ in range(3):
        g = gradient(w).numpy()
        w = w - 0.01 * np.sign(g)
    # Where the gradient is zero but for rounding, as on the border of the images, signs are chance.
    firm = np.abs(gradient(w).numpy()) > 1e-4
    assert firm.mean() > 0.5
    assert np.mean(np.abs(got - w)[firm] < 1e-5) > 0.98


def test_demo_without_the_sign_is_descent_by_the_mean_momentum():
    rule = DecoupledMomentum(
        WORKERS, lr=0.1, sign=False, compressor=Demo(k=64, chunk=8, vectors=True)
    )
    w = from_record(LAYOUT, ArrayRecord(MODEL().state_dict())).astype(np.float64)
    for _ in range(3):
        w = w - 0.1 * gradient(w).numpy()
    np.testing.assert_allclose(row(run(rule, 3)), w, atol=1e-5)


def test_a_liar_sends_a_message_of_another_vector():
    rule = DecoupledMomentum(
        WORKERS, lr=0.1, sign=False, compressor=Demo(k=64, chunk=8, vectors=True)
    )
    got = run(rule, 3, attack=OwnSignFlip())
    w = from_record(LAYOUT, ArrayRecord(MODEL().state_dict())).astype(np.float64)
    for _ in range(3):
        g = gradients(w).numpy()
        g[1] = -g[1]
        w = w - 0.1 * g.mean(axis=0)
    np.testing.assert_allclose(row(got), w, atol=1e-5)
    assert got.trace.counts[Event.FORGED] == 3


@pytest.mark.parametrize("compressor", [Identity(), Sign("l1")], ids=["identity", "sign"])
def test_a_liar_of_1_bit_adam_has_an_error_of_its_own(compressor):
    # With C the identity it is Adam on the forged momenta; with signs it is the rule by hand, with
    # the state of four workers, of which one is fed another vector.
    rule = OneBitAdam(WORKERS, warmup=2, lr=0.01, compressor=compressor)
    got = row(run(rule, 6, attack=IPM(epsilon=0.5)))
    x = from_record(LAYOUT, ArrayRecord(MODEL().state_dict()))
    shapes = Shapes.of(LAYOUT)
    honest = [rule.init_worker(shapes) for _ in range(WORKERS)]
    liar, server, r = rule.init_worker(shapes), rule.init_server(shapes), np.random.default_rng(0)
    for _ in range(6):
        payloads = []
        for i, g in enumerate(gradients(x.astype(np.float64)).numpy().astype(np.float32)):
            payload, honest[i] = rule.send(g, shapes, honest[i], r)
            payloads.append(payload)
        others = [rule.decode(payloads[i], shapes, server, i) for i in (0, 2, 3)]
        payloads[1], liar = rule.encode(-0.5 * np.mean(others, axis=0), shapes, liar, r)
        message, server = rule.combine(payloads, shapes, server, r)
        _, liar = rule.apply(x, message, shapes, liar)
        steps = [rule.apply(x, message, shapes, state) for state in honest]
        x, honest = steps[0][0], [state for _, state in steps]
    # Where a sign depends on the last bit of a gradient, it may be another.
    assert np.mean(np.abs(got - x) < 1e-4) > 0.97


def test_1_bit_adam_may_combine_by_an_aggregator():
    rule = OneBitAdam(WORKERS, warmup=2, lr=0.01, compressor=Identity(), aggregator=Median())
    got = row(run(rule, 5, attack=IPM(epsilon=100.0)))
    w = from_record(LAYOUT, ArrayRecord(MODEL().state_dict())).astype(np.float64)
    m = v = np.zeros(D)
    for t in range(5):
        rows = gradients(w).numpy() if t < 2 else 0.9 * m + 0.1 * gradients(w).numpy()
        rows[1] = -100.0 * rows[[0, 2, 3]].mean(axis=0)
        c = np.median(rows, axis=0)
        m = 0.9 * m + 0.1 * c if t < 2 else c
        v = 0.999 * v + 0.001 * c * c if t < 2 else v
        w = w - 0.01 * np.divide(m, np.sqrt(v) + 1e-8)
    # Where the median is 0 but for rounding, so is what the step divides by.
    assert np.mean(np.abs(got - w) < 1e-3) > 0.9
    with pytest.raises(ConfigError, match="n=4"):
        OneBitAdam(WORKERS, warmup=2, lr=0.01, aggregator=Krum(f=1))


def test_a_vector_that_no_message_holds_stops_the_run():
    with pytest.raises(ConfigError, match=r"IPM makes a vector that no message of OneBitAdam"):
        run(OneBitAdam(WORKERS, warmup=3, lr=0.01), 2, attack=IPM(epsilon=1e30))


def test_one_byte_steps_are_gradient_descent_in_expectation():
    start = from_record(LAYOUT, ArrayRecord(MODEL().state_dict())).astype(np.float64)
    g = gradient(start).numpy()
    spsa = OneByteSpsa(samples=500, scale=0.05)
    rule = JustOneByte(WORKERS, lr=1.0, compressor=spsa)
    step = start - row(run(rule, 1))
    # Each coordinate of the mean of n S directions has variance about |g|^2 / (n S).
    error = np.linalg.norm(g) / np.sqrt(WORKERS * 500)
    assert np.abs(step - g).max() < 5 * error
    assert np.dot(step, g) / np.dot(g, g) == pytest.approx(1, abs=0.2)


def test_the_broadcast_is_one_content():
    strategy = Replicas(OneBitAdam(WORKERS, warmup=1, lr=0.1))

    class Grid:
        def get_node_ids(self):
            return range(WORKERS)

    messages = strategy.configure_train(
        1, ArrayRecord(MODEL().state_dict()), ConfigRecord(), Grid()
    )
    assert len({id(message.content) for message in messages}) == 1


def test_signs_learn_what_adam_learns():
    def loss(result):
        model = MODEL()
        model.load_state_dict(result.arrays.to_torch_state_dict())
        return evaluate(model, DATA.test_set())[0]

    adam = loss(run(OneBitAdam(WORKERS, warmup=30, lr=0.02), 30))
    onebit = loss(run(OneBitAdam(WORKERS, warmup=8, lr=0.02, compressor=Sign("l1")), 30))
    assert onebit < 1.3 * adam


@pytest.mark.parametrize("fault", [{"dropout": 0.3}, {"message_loss": 0.3}])
def test_a_missing_worker_stops_the_run_with_a_reason(fault):
    fleet = replace(uniform(num_clients=WORKERS, seed=0), faults=Faults(**fault, detection_s=1.0))
    with pytest.raises(SimulationError, match="OneBitAdam needs the message of every worker"):
        run(OneBitAdam(WORKERS, warmup=3, lr=0.01), 10, fleet=fleet)


def test_workers_that_come_later_are_waited_for():
    away = Scripted(WORKERS, {1: [3600.0]}, offline=[1])
    fleet = replace(uniform(num_clients=WORKERS, seed=0), availability=away)
    totals = run(OneBitAdam(WORKERS, warmup=3, lr=0.01), 3, fleet=fleet).summary["totals"]
    assert totals["client_updates"] == 3 * WORKERS
    assert 3600.0 < totals["virtual_s"] < 3620.0


def test_too_many_or_too_few_workers_are_refused():
    with pytest.raises(SimulationError, match=r"no other will ever come\. Ask for fewer .*workers"):
        run(OneBitAdam(WORKERS + 1, warmup=3, lr=0.01), 1)
    with pytest.raises(ConfigError, match=f"set strategy.rule.workers={WORKERS}"):
        run(OneBitAdam(WORKERS - 1, warmup=3, lr=0.01), 1)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"\xff" * len(data)]
)
def test_a_hostile_worker_is_named(damage):
    def hostile(app):
        outer = ClientApp()

        @outer.train()
        def train(message, context):
            reply = app(message, context)
            if context.node_config["partition-id"] == 2:
                data = damage(reply.content["arrays"]["update"].data)
                array = Array("uint8", (len(data),), "fl.payload", data)
                records = {**reply.content, "arrays": ArrayRecord({"update": array})}
                reply.content = RecordDict(records)
            return reply

        return outer

    with pytest.raises(ConfigError, match="the message of node 4 is refused"):
        run(OneBitAdam(WORKERS, warmup=1, lr=0.01), 2, hostile)
