"""What outer gradients pass between workers: compressors with memory, liars, aggregators, bytes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from islands import (
    ADAMW,
    AVERAGE,
    CUT,
    LAYOUT,
    PLAIN,
    SGD,
    crashing,
    driven,
    of,
    references,
    run,
)

from fl.aggregation import FLTrust, Krum, Median
from fl.attacks import ALIE, IPM, Optimized, OwnSignFlip
from fl.clients import Gradient
from fl.compression import (
    EF21,
    Cast,
    ErrorFeedback,
    Grass,
    PowerSgd,
    Shapes,
    TernGrad,
    TopK,
    UniformQuantizer,
)
from fl.errors import ConfigError
from fl.models import per_example_loss
from fl.simulation.kernel.trace import Event
from fl.simulation.world.fleets import uniform
from fl.strategies import (
    DataParallel,
    DelayedUpdates,
    DiLoCo,
    EagerUpdates,
    LocalSGD,
    OuterSteps,
    StreamingDiLoCo,
)

D = LAYOUT.size
TOPK = TopK(density=0.1)


def test_buckets_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match=r"buckets is 5.*Buckets"):
        OuterSteps(DataParallel(), buckets=5)


# ---- compressors that remember -------------------------------------------------------------------


def spying(kind):
    """Returns a kind of channel that keeps what its senders were given and had, per fragment."""

    @dataclass(frozen=True)
    class Spy(kind):
        def encode(self, x, shapes, state, rng):
            payload, after = super().encode(x, shapes, state, rng)
            calls.append((shapes, x.copy(), state, after, payload))
            return payload, after

    calls = []
    return Spy, calls


@pytest.mark.parametrize(
    ("rule", "client"),
    [
        (DiLoCo(inner_steps=3, optimizer=PLAIN), ADAMW),
        (StreamingDiLoCo(inner_steps=6, fragments=3, optimizer=PLAIN), ADAMW),
        (DelayedUpdates(inner_steps=3, optimizer=PLAIN), SGD),
        (EagerUpdates(inner_steps=3, optimizer=PLAIN), SGD),
        (DataParallel(optimizer=PLAIN), Gradient()),
    ],
    ids=["diloco", "streaming", "delayed", "eager", "data_parallel"],
)
def test_error_feedback_loses_nothing_of_any_fragment(rule, client):
    spy, calls = spying(ErrorFeedback)
    got = run(rule, 4, workers=1, rule=client, compressor=spy(TOPK))
    of_fragment = {}
    for shapes, *call in calls:
        of_fragment.setdefault(shapes, []).append(call)
    assert len(of_fragment) == (3 if isinstance(rule, StreamingDiLoCo) else 1)
    for shapes, sent in of_fragment.items():
        assert len(sent) == 4
        total = np.zeros(shapes.size)
        for x, before, after, payload in sent:
            np.testing.assert_allclose(before["e"], total, atol=1e-5)
            total += x - TOPK.decode(payload, shapes)
            np.testing.assert_allclose(after["e"], total, atol=1e-5)
        assert np.abs(total).max() > 1e-3
    if isinstance(rule, DiLoCo):  # what has moved the model, and what is left, is all there was
        moved = (got.rows[0] - got.rows[-1]) / 0.5
        x = np.sum([call[1] for call in calls], axis=0)
        np.testing.assert_allclose(moved + calls[-1][3]["e"], x, atol=1e-5)


def test_powersgd_begins_from_its_last_basis():
    spy, calls = spying(PowerSgd)
    run(DiLoCo(inner_steps=2), 3, workers=1, compressor=spy(rank=1))
    for (*_, after, _), (_, _, before, *_) in itertools.pairwise(calls):
        np.testing.assert_array_equal(before["q"], after["q"])
    assert [int(before["step"][0]) for _, _, before, *_ in calls] == [0, 1, 2]


def test_what_is_received_follows_what_is_sent_where_both_ends_remember():
    spy, calls = spying(EF21)
    got = run(LocalSGD(inner_steps=2), 5, workers=1, rule=SGD, compressor=spy(TOPK))
    # The receivers take h for the outer gradient, and the model moves by it.
    for version, (*_, after, _) in enumerate(calls):
        expected = got.rows[version].astype(np.float64) - after["h"]
        np.testing.assert_allclose(got.rows[version + 1], expected, atol=1e-6)
    assert [len(payload) > 4 * D for *_, payload in calls] == [True, *[False] * 4]


@pytest.mark.parametrize("kind", [ErrorFeedback, EF21], ids=["sender", "receivers too"])
def test_the_compressor_of_a_worker_that_enters_again_starts_over(kind):
    spy, calls = spying(kind)
    got = run(DiLoCo(inner_steps=2), 4, rule=SGD, compressor=spy(TOPK), fleet=crashing((0, 1)))
    fresh = [not any(value.any() for value in before.values()) for _, _, before, *_ in calls]
    assert fresh == [True, True, False, True, False, False, False]
    assert got.run.trace.counts[Event.REJECTED] == 0
    (transfer,) = of(got.run.trace, Event.TRANSFER)
    # With memory at the receivers, it also needs what the others keep of both workers.
    kept = 2 * (4 * D + 8) if kind is EF21 else 0
    assert transfer["bytes"] == 8 * D + kept  # model and momentum


@pytest.mark.parametrize("kind", [ErrorFeedback, EF21], ids=["sender", "receivers too"])
def test_the_compressor_starts_over_after_a_payload_that_was_lost(kind):
    class First(OuterSteps):
        def _drops(self, worker, key):
            return worker.node == 2 and key[1] == 4

    spy, calls = spying(kind)
    strategy = driven(DiLoCo(inner_steps=2), strategy=First, drop=0.5, compressor=spy(TOPK))
    got = run(strategy, 4, rule=SGD)
    fresh = [not any(value.any() for value in before.values()) for _, _, before, *_ in calls]
    assert fresh == [True, True, False, False, True, False, False, False]
    assert got.run.trace.counts[Event.REJECTED] == 0


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compressor", "sent"),
    [
        (None, lambda size: -(-2 * 2 * size // 3)),
        (Cast("e3m0"), lambda size: -(-2 * 2 * size // 3)),
        (UniformQuantizer(bits=8), lambda size: -(-2 * 2 * size // 3)),
        (PowerSgd(rank=1), lambda size: 2 * size),
        (ErrorFeedback(PowerSgd(rank=1)), lambda size: 2 * size),
        (ErrorFeedback(Cast("e3m0")), lambda size: -(-2 * 2 * size // 3)),
    ],
    ids=["float32", "e3m0", "int8", "powersgd", "ef_powersgd", "ef_e3m0"],
)
def test_payloads_that_cannot_be_added_on_their_way_are_gathered(compressor, sent):
    size = 4 * D
    if compressor is not None:
        (shapes,) = driven(DiLoCo()).cut(LAYOUT).shapes
        size, most = compressor.length(shapes)
        assert size == most
    got = run(DiLoCo(inner_steps=2), 2, workers=3, compressor=compressor)
    assert {row["bytes"] for row in of(got.run.trace, Event.ALL_REDUCE)} == {sent(size)}


def test_an_aggregator_has_to_see_every_vector():
    strategy = driven(DiLoCo(inner_steps=2), workers=3, aggregator=Median())
    got = run(strategy, 2, workers=3)
    assert {row["bytes"] for row in of(got.run.trace, Event.ALL_REDUCE)} == {2 * 4 * D}


# ---- liars and aggregators -----------------------------------------------------------------------


def deltas_of(workers, theta, steps):
    for worker in workers:
        worker.w = theta
        worker.train(steps)
    return np.array([theta - worker.w for worker in workers])


@pytest.mark.parametrize("aggregator", [None, Median()], ids=["mean", "median"])
def test_a_liars_outer_gradient_is_forged_in_every_all_reduce(aggregator):
    rule = DiLoCo(inner_steps=2, optimizer=PLAIN)
    strategy = driven(
        rule, workers=3, attack=IPM(epsilon=2.0), byzantine=[1], aggregator=aggregator
    )
    got = run(strategy, 3, workers=3)
    workers = references(3, SGD)
    theta = workers[0].w
    for version in range(3):
        deltas = deltas_of(workers, theta, 2)
        deltas[1] = -2.0 * (deltas[0] + deltas[2]) / 2
        theta = theta - 0.5 * (deltas.mean(0) if aggregator is None else np.median(deltas, 0))
        np.testing.assert_allclose(got.rows[version + 1], theta, atol=3e-6)
    forged = of(got.run.trace, Event.FORGED)
    assert [row["client"] for row in forged] == [1, 1, 1]
    assert got.run.trace.counts[Event.APPLIED] == 9


def test_a_forged_gradient_is_a_step_uphill_of_all():
    strategy = driven(DataParallel(optimizer=PLAIN), workers=2, attack=OwnSignFlip(), byzantine=[1])
    got = run(strategy, 1, rule=Gradient())
    a, b = references(2, SGD)
    g = deltas_of([a, b], a.w, 1) / SGD.lr
    np.testing.assert_allclose(got.rows[1], got.rows[0] - 0.5 * (g[0] - g[1]) / 2, atol=2e-6)


def test_every_fragment_is_forged_by_itself():
    rule = StreamingDiLoCo(inner_steps=3, fragments=3, overlap=0, mixing=0.0, optimizer=AVERAGE)
    strategy = driven(rule, workers=2, attack=OwnSignFlip(), byzantine=[0])
    got = run(strategy, 1)
    a, b = references(2, SGD)
    theta = a.w
    for p in (1, 2, 0):  # due after steps 1, 2 and 3
        deltas = []
        for worker in (a, b):
            worker.train(1)
            deltas.append(CUT.take(theta - worker.w, p))
        fragment = CUT.take(theta, p) - (deltas[1] - deltas[0]) / 2
        CUT.put(theta, p, fragment)
        for worker in (a, b):
            w = worker.w
            CUT.put(w, p, fragment)
            worker.w = w
    np.testing.assert_allclose(got.rows[1], theta, atol=2e-6)
    assert got.run.trace.counts[Event.FORGED] == 3


def test_a_forged_outer_gradient_goes_through_an_encoder_of_its_own():
    spy, calls = spying(ErrorFeedback)
    strategy = driven(
        DiLoCo(inner_steps=2, optimizer=PLAIN),
        workers=2,
        attack=OwnSignFlip(),
        byzantine=[1],
        compressor=spy(TOPK),
    )
    got = run(strategy, 3)
    assert len(calls) == 9  # two workers, and the liar once more, in three rounds
    theta, shapes = got.rows[0], calls[0][0]
    honest, liar = [[] for _ in range(2)], []
    for i in range(3):
        for m in range(2):
            honest[m].append(calls[3 * i + m])
        liar.append(calls[3 * i + 2])
        sent = [TOPK.decode(call[-1], shapes) for call in (honest[0][-1], liar[-1])]
        theta = theta - 0.5 * (sent[0] + sent[1]) / 2
        np.testing.assert_allclose(got.rows[i + 1], theta, atol=2e-6)
        # It flips what the others would have read of its honest twin.
        twin = TOPK.decode(honest[1][-1][-1], shapes)
        np.testing.assert_allclose(liar[-1][1], -twin, atol=1e-6)
    for sent in (*honest, liar):
        for (*_, after, _), (_, _, before, *_) in itertools.pairwise(sent):
            np.testing.assert_array_equal(before["e"], after["e"])


def test_an_optimized_attack_knows_the_aggregator():
    plain, searched = (
        run(
            driven(
                LocalSGD(inner_steps=2),
                workers=4,
                attack=attack,
                byzantine=[0],
                aggregator=Median(),
            ),
            1,
            workers=4,
        ).rows[1]
        for attack in (ALIE(), Optimized(ALIE()))
    )
    honest = run(driven(LocalSGD(inner_steps=2), workers=4, aggregator=Median()), 1, workers=4)
    distance = [np.linalg.norm(row - honest.rows[1]) for row in (plain, searched)]
    assert distance[1] > distance[0] > 0


def test_eager_liars_know_their_own_and_the_model_is_that_of_the_others():
    rule = EagerUpdates(inner_steps=2, optimizer=PLAIN)
    strategy = driven(rule, workers=2, attack=OwnSignFlip(), byzantine=[1])
    got = run(strategy, 2)
    a, b = references(2, SGD)
    first = a.w
    one = deltas_of([a, b], first, 2)
    own = first - 0.5 * one[0] / 2, first - 0.5 * one[1] / 2
    np.testing.assert_allclose(got.rows[1], own[0], atol=2e-6)
    two = [deltas_of([worker], theta, 2)[0] for worker, theta in zip((a, b), own, strict=True)]
    # In the end all that is outstanding: both last ones, and what the liar sent in the first.
    expected = own[0] - 0.5 * ((two[0] - two[1]) / 2 - one[1] / 2)
    np.testing.assert_allclose(got.rows[2], expected, atol=2e-6)


def test_with_too_few_survivors_for_the_aggregator_the_outer_parameters_stay():
    strategy = driven(DiLoCo(inner_steps=2), workers=3, aggregator=Krum(f=0))
    with pytest.raises(ConfigError, match="n=2"):
        run(driven(DiLoCo(inner_steps=2), aggregator=Krum(f=0)), 1)
    got = run(strategy, 3, workers=3, fleet=crashing((0, 1), workers=3))
    assert got.run.trace.counts[Event.NO_STEP] == 1
    np.testing.assert_array_equal(got.rows[2], got.rows[1])
    assert not np.array_equal(got.rows[3], got.rows[2])


def test_aggregators_that_compare_with_a_vector_of_their_own_are_refused():
    with pytest.raises(ConfigError, match="aggregator is FLTrust"):
        OuterSteps(DiLoCo(), aggregator=FLTrust())


# ---- the mean is compressed ----------------------------------------------------------------------


def gram_schmidt(P):
    """Orthonormal columns, in their order, as the paper's code has them."""
    P = P.copy()
    for i in range(P.shape[1]):
        P[:, i] /= np.sqrt(np.sum(P[:, i] ** 2)) + 1e-8
        P[:, i + 1 :] -= np.outer(P[:, i], P[:, i] @ P[:, i + 1 :])
    return P


class Algorithm2:
    """PowerSGD with error feedback among n workers, on plain float64 arrays: github.com/epfml."""

    def __init__(self, compressor, shapes, n, feedback):
        state = compressor.init(shapes)["q"].astype(np.float64)
        self.matrices, self.Q, self.feedback = [], {}, feedback
        self.e = np.zeros((n, shapes.size))
        for (rows, columns), shape, part in zip(
            shapes.matrices, shapes.shapes, shapes.slices, strict=True
        ):
            if len(shape) == 1:
                continue
            r = min(compressor.rank, rows, columns)
            self.matrices.append((part, rows, columns))
            self.Q[part.start], state = (
                state[: columns * r].reshape(columns, r),
                state[columns * r :],
            )
        assert not len(state)

    def reduce(self, gradients):
        M = gradients + self.e
        G = M.mean(axis=0)  # vectors are all-reduced as they are
        for part, n, m in self.matrices:
            M_i = M[:, part].reshape(-1, n, m)
            P = gram_schmidt(np.mean([one @ self.Q[part.start] for one in M_i], axis=0))
            Q = np.mean([one.T @ P for one in M_i], axis=0)
            self.Q[part.start] = Q
            G[part] = (P @ Q.T).ravel()
        if self.feedback:
            self.e = M - G
        return G


def gradient_of(worker, theta):
    """Returns the gradient of a worker's loss at theta, shape (d,), by torch."""
    worker.w = theta
    worker.model.zero_grad()
    per_example_loss(worker.model(worker.x), worker.y).mean().backward()
    parts = [p.grad.reshape(-1) for p in worker.model.parameters()]
    return torch.cat(parts).double().numpy()


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_powersgd_of_the_mean_is_algorithm_2_of_its_paper(workers, feedback):
    # Every parameter's gradient at the models of the run, by torch; the steps by the algorithm.
    lr, rounds = 0.5, 6
    powersgd = PowerSgd(rank=2, min_compression=0, seed=3)
    channel = ErrorFeedback(powersgd) if feedback else powersgd
    rule = DataParallel(optimizer=PLAIN)
    strategy = driven(rule, workers=workers, compressor=channel, compress_mean=True)
    got = run(strategy, rounds, workers=workers, rule=Gradient())
    algorithm = Algorithm2(powersgd, Shapes.trained(LAYOUT), workers, feedback)
    everybody = references(workers, SGD)
    theta = got.rows[0].astype(np.float64)
    for version in range(rounds):
        gradients = np.stack([gradient_of(worker, theta) for worker in everybody])
        theta = theta - lr * algorithm.reduce(gradients)
        np.testing.assert_allclose(got.rows[version + 1], theta, atol=2e-5)
    assert got.summary["faults"] == {}


def all_reduces(done, workers):
    """Returns bytes and seconds of every worker's all-reduces, by worker."""
    events = of(done.run.trace, Event.ALL_REDUCE)
    return {
        i: [(e["bytes"], e["value"]) for e in events if e["client"] == i] for i in range(workers)
    }


@pytest.mark.parametrize("kind", [PowerSgd, TernGrad, Grass])
def test_the_sums_of_a_mean_are_charged_as_one_all_reduce_after_the_other(kind):
    workers, shapes = 3, Shapes.trained(LAYOUT)
    if kind is PowerSgd:
        channel = PowerSgd(rank=1, min_compression=0)
        pairs = [nm for nm in shapes.matrices if nm[1] > 1]
        rest = sum(n for n, m in shapes.matrices if m == 1)
        sizes = [4 * (sum(n for n, _ in pairs) + rest), 4 * sum(m for _, m in pairs)]
    elif kind is Grass:
        channel = Grass(rank=2)
        pairs = [nm for nm in shapes.matrices if nm[1] > 1]
        rest = sum(n for n, m in shapes.matrices if m == 1)
        sizes = [4 * sum(n for n, _ in pairs), 4 * (2 * sum(m for _, m in pairs) + rest)]
    else:
        channel, layers = TernGrad(clip=None), len(shapes.sizes)
        sizes = [4 * layers, 6 + 4 + 4 * layers + math.ceil(shapes.size * 3 / 8)]  # 2 n + 1 < 2^3
    fleet = uniform(num_clients=workers, seed=0)
    strategy = driven(
        LocalSGD(inner_steps=2), workers=workers, compressor=channel, compress_mean=True
    )
    got = run(strategy, 2, workers=workers, fleet=fleet)
    plain = run(driven(LocalSGD(inner_steps=2), workers=workers), 2, workers=workers, fleet=fleet)
    hops = 2 * (workers - 1)
    peers = fleet.peers
    hop_s = [
        peers.latency_s(0, 1) + 8 * size / workers / peers.bandwidth_bps(0, 1) for size in sizes
    ]
    for events in all_reduces(got, workers).values():
        assert [b for b, _ in events] == [math.ceil(hops * size / workers) for size in sizes] * 2
        np.testing.assert_allclose([s for _, s in events], [hops * s for s in hop_s] * 2)
    computed = plain.times[1] - all_reduces(plain, workers)[0][0][1]
    assert got.times[1] == pytest.approx(computed + hops * sum(hop_s))


def test_terngrad_of_the_mean_adds_ternaries_of_the_largest_scaler():
    workers = 3
    seen = []

    class Spy(TernGrad):
        def compress_mean(self, x, shapes, state, rngs):
            made = super().compress_mean(x, shapes, state, rngs)
            seen.append((x, shapes, made.mean))
            return made

    strategy = driven(
        LocalSGD(inner_steps=2), workers=workers, compressor=Spy(clip=None), compress_mean=True
    )
    got = run(strategy, 3, workers=workers)
    for version, (x, shapes, mean) in enumerate(seen):
        for part in shapes.slices:
            largest = np.abs(x[:, part]).max()
            counts = mean[part] * workers / largest
            np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
            assert np.abs(counts).max() <= workers * (1 + 1e-5)
        moved = got.rows[version] - got.rows[version + 1]
        np.testing.assert_allclose(moved, mean, atol=1e-6)


def test_a_compressed_mean_at_full_rank_is_the_mean():
    full = PowerSgd(rank=100, min_compression=0)
    rule = DiLoCo(inner_steps=2, optimizer=PLAIN)
    plain = run(driven(rule, workers=3), 3, workers=3)
    got = run(driven(rule, workers=3, compressor=full, compress_mean=True), 3, workers=3)
    np.testing.assert_allclose(got.rows, plain.rows, atol=1e-5)


def test_a_liars_vector_enters_the_compressed_mean_as_the_attack_makes_it():
    full = PowerSgd(rank=100, min_compression=0)
    rule, liar = LocalSGD(inner_steps=2), {"attack": OwnSignFlip(2.0), "byzantine": (1,)}
    plain = run(driven(rule, workers=3, **liar), 3, workers=3)
    strategy = driven(rule, workers=3, compressor=full, compress_mean=True, **liar)
    got = run(strategy, 3, workers=3)
    assert got.summary["faults"] == plain.summary["faults"] == {"forged": 3}
    np.testing.assert_allclose(got.rows, plain.rows, atol=1e-5)


def test_workers_that_crash_and_come_back_leave_a_compressed_mean_of_the_others():
    channel = ErrorFeedback(PowerSgd(rank=1, min_compression=0))
    strategy = driven(
        DiLoCo(inner_steps=2, optimizer=PLAIN), workers=3, compressor=channel, compress_mean=True
    )
    got = run(strategy, 4, workers=3, fleet=crashing((1, 1), workers=3))
    assert np.isfinite(got.rows).all()
    assert got.summary["status"] == "completed"


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("aggregator", {"aggregator": Median()}),
        ("weighted_by_key", {"weighted_by_key": "num-examples"}),
        ("drop", {"drop": 0.1}),
        ("compressor", {"compressor": TOPK}),
        ("compressor", {"compressor": None}),
        ("rule", {"rule": EagerUpdates(inner_steps=2)}),
    ],
)
def test_what_makes_no_common_mean_is_refused(key, more):
    given = {"rule": LocalSGD(inner_steps=2), "compressor": PowerSgd(), **more}
    with pytest.raises(ConfigError, match=f"compress_mean is true.*{key} is"):
        driven(given.pop("rule"), compress_mean=True, **given)
