"""What outer gradients pass between workers: compressors with memory, liars, aggregators, bytes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
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
from fl.compression import EF21, Cast, ErrorFeedback, PowerSgd, TopK, UniformQuantizer
from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event
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
    assert transfer["bytes"] == 4 * D + kept


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
