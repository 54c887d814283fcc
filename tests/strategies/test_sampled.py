"""Samples without a server: who they are, what is sent, and what becomes of them on any fleet."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from networks import LR, attacked, run
from stand_ins import Client, Scripted

from fl.attacks import ConstantUpdate
from fl.compression import TopK
from fl.errors import ConfigError, SimulationError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.strategies import Exchange, Plexus, Sampled
from fl.strategies.drivers.peers import sampled
from fl.strategies.drivers.peers.sampled import SHORT_BYTES

SIZE = 137  # bytes of a model of two numbers, as a message has it
A, B = np.ones(6), np.arange(6.0)


# ---- the rule ------------------------------------------------------------------------------------


def test_every_node_finds_the_same_sample_whatever_it_asks_in_which_order():
    rule, n = Plexus(sample_size=3), 9
    for k in (1, 2, 30):
        samples = set()
        for i in range(n):
            view = rule.heard(rule.init(n), i, 0)
            known = rule.candidates(view, k, i)
            samples.add(tuple(rule.order(k, known[::-1] if i % 2 else known, seed=5)))
        assert len(samples) == 1
        (order,) = samples
        by_hand = sorted(range(n), key=lambda j: hashlib.md5(f"5-{j}-{k}".encode()).hexdigest())
        assert list(order) == by_hand


def test_who_is_missing_is_followed_by_the_next_and_nobody_else_moves():
    rule = Plexus()
    order = rule.order(4, range(20), seed=0)
    assert rule.order(4, [j for j in range(20) if j != order[2]], seed=0) == [
        *order[:2],
        *order[3:],
    ]


def test_nodes_are_in_samples_equally_often_and_seeds_and_rounds_draw_others():
    rule, n, s, rounds = Plexus(sample_size=5), 20, 5, 2_000
    counts = Counter(j for k in range(1, rounds + 1) for j in rule.order(k, range(n), 1)[:s])
    expected, deviation = rounds * s / n, (rounds * s / n * (1 - s / n)) ** 0.5
    assert max(abs(counts[j] - expected) for j in range(n)) < 4 * deviation
    assert rule.order(1, range(n), 1) != rule.order(2, range(n), 1) != rule.order(2, range(n), 2)


def test_views_agree_whatever_is_exchanged_first_and_how_often():
    rule = Plexus()
    views = [rule.heard(rule.heard(rule.init(4), j, 3 * j + 1, j), 3, j) for j in range(3)]
    ended = set()
    for order in permutations(views):
        view = rule.init(4)
        for other in (*order, order[0]):
            view = rule.merged(view, other)
        ended.add((tuple(view.active), tuple(view.joined)))
    assert ended == {((1, 4, 7, 2), (0, 1, 2, 0))}


def test_who_was_silent_for_long_is_asked_no_more_until_it_joins_again():
    rule = Plexus(inactivity=10)
    view = rule.heard(rule.heard(rule.init(4), 1, 20), 2, 9)
    assert rule.candidates(view, 20, 0) == [0, 1]
    assert rule.candidates(rule.heard(view, 3, 20, 1), 20, 0) == [0, 1, 3]
    assert rule.candidates(rule.init(4), 10, 0) == [0, 1, 2, 3]
    assert rule.latest(view) == 20


# ---- rounds --------------------------------------------------------------------------------------


def plexus(s=3, fraction=1.0, **options):
    rule = Plexus(sample_size=s, success_fraction=fraction, aggregators=options.pop("a", 1))
    return Sampled(rule, num_nodes=6, seed=4, **options)


def averaged(rounds, s=3, seed=4, there=range(6)):
    """Returns the model after each round, of nodes that are all there."""
    x, models = np.float32(0), []
    for k in range(1, rounds + 1):
        sample = Plexus().order(k, there, seed)[:s]
        x = np.mean([x - np.float32(LR) * (x - np.float32(B[j])) for j in sample])
        models.append(x)
    return np.array(models)


@pytest.mark.parametrize("a", [1, 2])
def test_a_round_is_the_mean_of_what_its_sample_has_trained(a):
    ran = run(plexus(a=a), a=A, b=B, num_rounds=8)
    np.testing.assert_allclose([m[0, 0] for m in ran.models[1:]], averaged(8), rtol=1e-6)
    sampled = Counter(node for (node, _) in ran.begun())
    expected = Counter(j for k in range(1, 9) for j in Plexus().order(k, range(6), 4)[:3])
    assert sampled == expected
    assert ran.times[-1] == pytest.approx(8)  # steps of 1 s, links that take no time


def test_bytes_are_those_of_pings_models_with_views_and_words_of_thanks():
    rounds = 5
    ran = run(plexus(), a=A, b=B, num_rounds=rounds)
    models = short = 0
    for k in range(1, rounds + 1):
        order = [Plexus().order(r, range(6), 4) for r in (k, k + 1)]
        sample, aggregator, following = order[0][:3], order[1][0], order[1][:3]
        models += sum(j != aggregator for j in sample)
        short += 2 * sum(j != aggregator for j in sample)  # a ping, and its answer
        if k < rounds:
            models += sum(j != aggregator for j in following)
            short += 2 * sum(j != aggregator for j in following)
            short += sum(j != aggregator for j in sample)
    sizes = [e[4] for e in ran.of(Event.TRANSFER)]
    assert sizes.count(SIZE + 16 * 6) == models
    assert sizes.count(SHORT_BYTES) == short
    assert len(sizes) == models + short
    assert ran.grid.engine.bytes_up == sum(sizes)


def test_who_does_not_answer_is_passed_over_after_the_timeout():
    order = [Plexus().order(k, range(6), 4) for k in range(1, 8)]
    gone = order[1][0]  # would average the first round
    away = Scripted(6, {gone: [0.5]})
    ran = run(plexus(), a=A, b=B, num_rounds=4, availability=away)
    assert gone not in order[0][:3]
    there = [j for j in range(6) if j != gone]
    np.testing.assert_allclose(
        [m[0, 0] for m in ran.models[1:]], averaged(4, there=there), rtol=1e-6
    )
    assert ran.times[1] == pytest.approx(1 + 5)  # of the step, and of the ping
    assert {node for node, _ in ran.begun()} <= set(there)


def test_an_aggregator_that_falls_silent_is_replaced_and_what_it_had_is_sent_again():
    slow = Plexus().order(1, range(6), 4)[2]
    aggregator = Plexus().order(2, range(6), 4)[0]
    assert aggregator != slow
    away = Scripted(6, {aggregator: [2.0]})  # it has two models of three by then
    seconds = [3.0 if j == slow else 1.0 for j in range(6)]
    method = plexus(aggregation_timeout_s=20.0)
    ran = run(method, a=A, b=B, num_rounds=3, availability=away, step_s=seconds)
    sample = Plexus().order(1, range(6), 4)[:3]
    x = np.mean([LR * B[j] for j in sample])
    np.testing.assert_allclose(ran.models[1][0, 0], x, rtol=1e-6)
    assert 31 <= ran.times[1] <= 31 + 2 * 5 + 1
    assert len(ran.models) == 4


def test_an_aggregator_goes_on_with_fewer_when_it_has_waited_long_enough():
    slowest = Plexus().order(1, range(6), 4)[0]
    seconds = [1000.0 if j == slowest else 1.0 for j in range(6)]
    method = plexus(aggregation_timeout_s=20.0, fewest=2)
    ran = run(method, a=A, b=B, num_rounds=1, step_s=seconds)
    others = Plexus().order(1, range(6), 4)[1:3]
    np.testing.assert_allclose(ran.models[1][0, 0], np.mean([LR * B[j] for j in others]), rtol=1e-6)
    assert ran.times[1] == pytest.approx(21)


def test_a_fraction_of_the_sample_is_enough_and_who_is_late_leaves_for_the_next_round():
    seconds = [1.0, 1.0, 50.0, 1.0, 1.0, 1.0]
    method = Sampled(Plexus(sample_size=6, success_fraction=0.8), num_nodes=6, seed=4)
    ran = run(method, a=A, b=B, num_rounds=5, step_s=seconds)
    assert ran.times[-1] == pytest.approx(5, abs=0.2)  # of 6 models 4 are enough
    assert len({k for node, k in ran.begun() if node == 2}) == 5
    assert method.needed == 4


def test_no_fault_stops_it_and_nobody_starves():
    fleets = (
        {"faults": Faults(dropout=0.2, message_loss=0.3, detection_s=0.5)},
        {"availability": Scripted(6, {2: [3.0, 40.0], 4: [5.0], 5: [8.0, 300.0, 400.0]})},
        {"availability": Scripted(6, {i: [2.5 + i, 500.0 + i] for i in range(6)})},
        {"availability": Scripted(6, {i: [90.0] for i in range(6)}, offline=range(6))},
    )
    for fleet in fleets:
        method = plexus(fraction=0.7, aggregation_timeout_s=10.0, retry_s=2.0, fewest=1)
        rounds = 12
        ran = run(method, a=A, b=np.full(6, 3.0), num_rounds=rounds, **fleet)
        assert len(ran.models) == rounds + 1
        np.testing.assert_allclose(ran.models[-1], 3 * (1 - 0.9**rounds), rtol=1e-5)
        assert len({node for node, _ in ran.begun()}) == 6


def test_days_of_silence_end_the_run_and_the_keys_are_those_of_the_method():
    method = plexus(retry_s=900.0)
    alone = Scripted(6, {1: [1e9]}, offline=range(1, 6))
    with pytest.raises(SimulationError, match=r"for 3 models .* 1 of 6 nodes .*strategy\.fewest"):
        run(method, a=A, b=B, num_rounds=2, availability=alone)
    ran = run(plexus(retry_s=900.0, fewest=1), a=A, b=B, num_rounds=2, availability=alone)
    assert len(ran.models) == 3


def test_nodes_that_come_and_go_too_fast_for_anything_end_the_run_after_so_many_returns(
    monkeypatch,
):
    monkeypatch.setattr(sampled, "_HOPELESS_COMINGS", 300)
    # Two are there at a time, for a second, and an aggregator needs three in one of its own.
    turns = {i: [k + half for k in range(i // 2, 999, 3) for half in (0, 1)] for i in range(6)}
    turns = {i: changes[i < 2 :] for i, changes in turns.items()}  # the first two begin at 0
    passing = Scripted(6, turns, offline=range(2, 6))
    method = plexus(aggregation_timeout_s=20.0, retry_s=0.5, ping_timeout_s=0.5)
    with pytest.raises(SimulationError, match=r"back 30\d times: none stays .*availability"):
        run(method, a=A, b=B, num_rounds=2, availability=passing, step_s=[0.1] * 6)


def test_a_sample_without_a_size_is_thirteen_or_all():
    for n, *expected in ((20, 13, 10, 3), (6, 6, 4, 3), (2, 2, 1, 1)):
        method = Sampled(Plexus(), num_nodes=n)
        assert [method.s, method.needed, method.fewest] == expected


def test_a_byzantine_node_sends_what_its_attack_makes():
    first = Plexus().order(1, range(6), 4)[:3]
    late = [2.0 if j == first[0] else 1.0 for j in range(6)]  # it knows what others have sent
    method = attacked(plexus(), ConstantUpdate(3.0), [first[0]])
    ran = run(method, a=A, b=B, num_rounds=1, step_s=late)
    assert len(ran.of(Event.FORGED)) == 1
    honest = np.mean([LR * B[j] for j in first])
    assert abs(ran.models[1][0, 0] - honest) > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plexus(sample_size=0), "sample_size is 0"),
        (lambda: Plexus(aggregators=0), "aggregators is 0"),
        (lambda: Plexus(success_fraction=0.0), "success_fraction is 0"),
        (lambda: Plexus(inactivity=0), "inactivity is 0"),
        (lambda: Sampled(Plexus(), num_nodes=1), "num_nodes is 1"),
        (lambda: plexus(ping_timeout_s=0.0), "ping_timeout_s is 0"),
        (lambda: plexus(aggregation_timeout_s=-1.0), "aggregation_timeout_s is -1"),
        (lambda: plexus(fewest=0), "fewest is 0"),
        (lambda: plexus(fewest=4), "fewest is 4, and an aggregator waits for 3 models of a samp"),
        (lambda: plexus(s=7), r"rule\.sample_size is 7, and num_nodes is 6: it must be at most"),
        (lambda: plexus(a=7), r"rule\.aggregators is 7, and num_nodes is 6"),
        (lambda: plexus().within(Exchange(TopK(0.5))), "handed on"),
        (lambda: run(plexus(), num_rounds=1, clients=[Client()] * 3), "6 nodes"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
