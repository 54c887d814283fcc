"""Clustered sampling: unbiased, of less variance than multinomial sampling, like with like."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_rounds import START, clients, run

from fl.errors import ConfigError
from fl.flower.identity import client_of, node_id
from fl.randomness import generator
from fl.selection import ClusteredBySimilarity, ClusteredBySize, Opening, Reply, RoundEnd
from fl.selection.clustered import KnownGradients, by_similarity, by_size, pairwise
from fl.selection.sizes import Sizes
from fl.simulation.kernel.trace import Event
from fl.strategies import FedAvg, Rounds

sizes_of_clients = st.lists(st.integers(1, 10_000), min_size=1, max_size=30)


def opening(n, m, server_round=1, idle=None):
    idle = list(range(n)) if idle is None else idle
    return Opening(server_round, idle, idle, m, partial(generator, server_round))


def random_distances(n, seed):
    x = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    return pairwise(x, "angle")


# ---- the distributions ---------------------------------------------------------------------------


@given(sizes_of_clients, st.integers(1, 12), st.integers(0, 99))
def test_every_draw_is_by_a_distribution_and_clients_are_drawn_by_their_sizes(sizes, m, seed):
    p = np.array(sizes) / sum(sizes)
    rng = np.random.default_rng(seed)
    for r in (by_size(p, m), by_similarity(p, m, random_distances(len(p), seed), rng)):
        assert r.shape == (m, len(p))
        assert (r >= 0).all()
        np.testing.assert_allclose(r.sum(axis=1), 1.0, atol=1e-7)
        np.testing.assert_allclose(r.sum(axis=0), m * p, atol=1e-7)  # unbiased
        variance = (r * (1 - r)).sum(axis=0)
        assert (variance <= m * p * (1 - p) + 1e-7).all()  # of multinomial sampling


def test_sizes_pour_from_one_distribution_into_the_next():
    r = by_size(np.array([0.5, 0.3, 0.2]), 2)
    np.testing.assert_allclose(r, [[1, 0, 0], [0, 0.6, 0.4]], atol=1e-12)
    # The variance of client 0's weight: 0, and p (1 - p) / m = 0.125 if both draws were by p.
    assert (r[:, 0] * (1 - r[:, 0])).sum() / 4 == 0.0


def test_as_many_draws_as_equal_clients_take_each_once():
    for r in (by_size(np.full(6, 1 / 6), 6), by_similarity(np.full(6, 1 / 6), 6, *clustering(6))):
        np.testing.assert_allclose(np.sort(r, axis=1)[:, -1], 1.0)
        np.testing.assert_allclose(r.sum(axis=0), 1.0)


def clustering(n):
    return random_distances(n, 0), np.random.default_rng(0)


def test_clients_whose_changes_are_alike_share_a_distribution():
    # Three directions, four clients each, of equal size: with m = 3 each direction is one draw.
    directions = np.eye(3, dtype=np.float32)[np.arange(12) % 3]
    x = directions * np.arange(1, 13, dtype=np.float32)[:, None]  # the angle sees no length
    r = by_similarity(np.full(12, 1 / 12), 3, pairwise(x, "angle"), np.random.default_rng(0))
    groups = sorted(tuple(np.flatnonzero(row > 1e-9) % 3) for row in r)
    assert groups == [(0,) * 4, (1,) * 4, (2,) * 4]


def test_a_client_larger_than_a_draw_fills_it_alone():
    p = np.array([0.7, 0.1, 0.1, 0.1])
    r = by_similarity(p, 4, *clustering(4))  # 2.8 draws of client 0, 0.4 of each other one
    assert (r[:, 0] == 1.0).sum() == 2
    assert r[:, 0].max() == 1.0


@pytest.mark.parametrize(
    ("distance", "expected"), [("angle", np.pi / 2), ("l1", 7.0), ("l2", 25.0)]
)
def test_distances_are_those_of_the_authors_code(distance, expected):
    x = np.array([[3, 0], [0, 4], [0, 0]], np.float32)
    d = pairwise(x, distance)
    assert d[0, 1] == d[1, 0] == pytest.approx(expected)
    assert d[0, 2] == (0.0 if distance == "angle" else {"l1": 3.0, "l2": 9.0}[distance])


# ---- the draws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [ClusteredBySize(), ClusteredBySimilarity()])
def test_the_expected_weight_of_a_client_is_its_share_and_its_variance_below_multinomial(rule):
    sizes = np.array([50.0, 10.0, 20.0, 5.0, 15.0, 30.0, 20.0])
    p, m, rounds = sizes / sizes.sum(), 3, 3000
    rng = np.random.default_rng(1)
    changes = {i: rng.standard_normal(4).astype(np.float32) for i in range(7)}
    state = KnownGradients(Sizes(dict(enumerate(sizes.tolist()))), changes)
    weight = np.zeros((rounds, 7))
    for t in range(rounds):
        choice, _ = rule.select(state, opening(7, m, t + 1))
        assert len(set(choice.clients)) == len(choice.clients)
        weight[t, list(choice.clients)] = np.array(choice.weights) / m
    multinomial = p * (1 - p) / m
    error = np.sqrt(multinomial / rounds)
    np.testing.assert_array_less(np.abs(weight.mean(axis=0) - p), 4 * error + 1e-9)
    assert (weight.var(axis=0) <= 1.1 * multinomial).all()
    assert weight.var(axis=0).sum() < 0.9 * multinomial.sum()


def test_a_client_that_is_drawn_twice_trains_once_and_counts_twice():
    # Client i has i + 1 of 10 examples: with m = 4 client 3 is drawn 1.6 times, client 0 0.4.
    strategy = Rounds(FedAvg(), selection=ClusteredBySize(), clients=4)
    _, trace, _, models = run(strategy, [1.0] * 4, rounds=1)
    weights = np.array([strategy.makes.weights.get(node_id(i), 0.0) for i in range(4)])
    assert sorted(clients(trace, Event.APPLIED)) == np.flatnonzero(weights).tolist()
    assert weights.sum() == 4
    assert weights[3] in (1.0, 2.0)
    assert models[1] == pytest.approx(weights @ np.arange(4) / 4)


def test_the_last_finite_change_of_a_client_represents_it():
    rule = ClusteredBySimilarity()
    good, bad = np.ones(2, np.float32), np.full(2, np.inf, np.float32)
    first = rule.init(9)
    second = rule.learn(first, RoundEnd(1, [Reply(7, 1.0, 3.0, {}, good)]))
    third = rule.learn(second, RoundEnd(2, [Reply(7, 1.0, 3.0, {}, bad)]))
    assert first.latest == {}
    assert third.latest[7] is good


def test_the_changes_that_are_compared_are_those_of_the_clients():
    strategy = Rounds(FedAvg(), selection=ClusteredBySimilarity(), clients=4)
    run(strategy, [1.0] * 4, rounds=12)
    assert strategy.chooses.known.latest
    for node, change in strategy.chooses.known.latest.items():  # client i adds i
        np.testing.assert_allclose(change, START + client_of(node), atol=1e-5)


# ---- what clients say of their sizes -------------------------------------------------------------


def test_a_claim_of_endless_examples_counts_as_the_most_there_may_be():
    sizes = Sizes({0: 2.0**63, **dict.fromkeys(range(1, 10), 10.0)})
    believing, bounded = ClusteredBySize(), ClusteredBySize(most_examples=20)
    choice, _ = believing.select(KnownGradients(sizes), opening(10, 5))
    assert list(choice.clients) == [0]
    choice, _ = bounded.select(KnownGradients(sizes), opening(10, 5))
    assert dict(zip(choice.clients, choice.weights, strict=True)).get(0, 0.0) <= 1.0


def test_clients_are_asked_for_their_sizes_when_they_come_and_again_if_they_are_silent():
    rule = ClusteredBySize()
    ask, state = rule.ask(rule.init(9), opening(3, 2))
    assert (ask.kind, list(ask.clients)) == ("query", [0, 1, 2])
    state = rule.told(state, ask, {0: {"num-examples": 5}, 1: {"num-examples": 0}})
    assert rule.ask(state, opening(3, 2))[0] is None  # once a round
    choice, _ = rule.select(state, opening(3, 2))
    assert list(choice.clients) == [0]  # neither who has nothing, nor whom nobody knows
    again, _ = rule.ask(state, opening(4, 2, server_round=2))
    assert list(again.clients) == [2, 3]


@pytest.mark.parametrize("said", [None, -1, float("nan"), True, "9", 2**64])
def test_a_size_that_is_none_is_refused(said):
    rule = ClusteredBySize()
    ask, _ = rule.ask(rule.init(9), opening(1, 1))
    assert rule.refuses(ask, {"num-examples": said}) is not None


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ClusteredBySimilarity(distance="cosine"), "distance is 'cosine'"),
        (lambda: ClusteredBySize(within_s=0.0), "within_s is 0"),
        (lambda: ClusteredBySize(most_examples=0), "most_examples is 0"),
    ],
)
def test_what_cannot_be_is_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
