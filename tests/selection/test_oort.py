"""Oort: scores as in the authors' code, exploration, the pacer, what replies teach."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scripted_rounds import run

from fl.errors import ConfigError
from fl.flower.identity import node_id
from fl.randomness import generator
from fl.selection import Oort, Opening
from fl.selection.oort import Known, Record, preferred_seconds
from fl.strategies import FedAvg, Rounds


def known(records, *, utilities=(), limit=100.0, epsilon=0.9):
    return Known(epsilon, limit, records, utilities=tuple(utilities))


def opening(idle, count, server_round=10):
    return Opening(server_round, idle, idle, count, partial(generator, 0, str(server_round)))


def select(rule, state, idle, count, server_round=10):
    choice, state = rule.select(state, opening(idle, count, server_round))
    assert choice.weights is None
    return choice.clients, state


def test_scores_are_those_of_the_authors_code():
    records = {1: Record(10.0, 1.0, 4, 1), 2: Record(30.0, 8.0, 9, 1), 3: Record(20.0, 2.0, 1, 1)}
    scores = Oort(clip=1.0).scores(known(records), [1, 2, 3], 10, 4.0)
    bonus = [math.sqrt(0.1 * math.log(10) / last) for last in (4, 9, 1)]
    # From 0.999 of the smallest utility to the largest: 9.99 to 30. Client 2 needs twice the
    # preferred time, and alpha is 2.
    expected = [0.01 / 20.01 + bonus[0], (1 + bonus[1]) / 4, 10.01 / 20.01 + bonus[2]]
    np.testing.assert_allclose(scores, expected)


def test_utilities_are_clipped_but_divided_by_the_range_of_what_they_were():
    records = {i: Record(float(u), 1.0, 9, 1) for i, u in enumerate([10, 11, 12, 13, 110])}
    scores = Oort(clip=0.75).scores(known(records), range(5), 1, math.inf)
    # Of five in ascending order, the one at place floor(0.75 * 5) is 13; ln 1 = 0: no bonus.
    np.testing.assert_allclose(scores, np.array([0.01, 1.01, 2.01, 3.01, 3.01]) / 100.01)


def test_the_preferred_time_is_a_percentile_of_the_known_times():
    records = {i: Record(1.0, float(i), 1, 1) for i in range(10)}
    assert preferred_seconds(known(records, limit=30.0)) == 3.0
    assert preferred_seconds(known(records)) == math.inf


def test_only_never_tried_clients_are_explored_and_the_share_falls():
    state = known({i: Record(1.0, 1.0, 1, 1) for i in range(10)}, epsilon=0.5)
    rule = Oort(decay=0.5, least_epsilon=0.2)
    chosen, state = select(rule, state, range(20), 8)
    assert state.epsilon == 0.25
    assert len(set(chosen)) == 8
    assert sum(c >= 10 for c in chosen) == 2  # floor(0.25 * 8)
    _, state = select(rule, state, range(20), 8)
    assert state.epsilon == 0.2
    chosen, _ = select(rule, state, range(10), 8)
    assert len(chosen) == 8  # all were tried: none is explored


def test_exploitation_takes_the_best():
    state = known({i: Record(float(i), 1.0, 5, 1) for i in range(20)})
    rule = Oort(clip=1.0, cut_off=1.0, decay=0.0, least_epsilon=0.0)
    chosen, state = select(rule, state, range(20), 5)
    assert sorted(chosen) == [15, 16, 17, 18, 19]
    assert state.exploited == {15, 16, 17, 18, 19}


def test_equal_utilities_without_penalty_are_drawn_uniformly():
    state = known({i: Record(1.0, float(i + 1), 5, 1) for i in range(8)}, limit=10.0)
    rule = Oort(alpha=0.0, decay=0.0, least_epsilon=0.0)
    counts = np.zeros(8)
    for server_round in range(1, 401):
        counts[select(rule, state, range(8), 2, server_round)[0]] += 1
    assert counts.sum() == 800
    np.testing.assert_allclose(counts, 100, atol=4 * math.sqrt(400 * 0.25 * 0.75))


def test_one_client_that_claims_any_loss_decides_nothing_for_the_others():
    honest = {i: Record(float(i), 1.0, 5, 1) for i in range(1, 20)}
    lying = {**honest, 0: Record(1e300, 1.0, 5, 1)}
    rule = Oort(decay=0.0, least_epsilon=0.0)
    counts = np.zeros(20)
    for server_round in range(1, 201):
        counts[select(rule, known(lying), range(20), 4, server_round)[0]] += 1
    # Its utility counts as the quantile, and beside its range all others are equal.
    assert counts[0] <= 200
    np.testing.assert_allclose(counts[1:], counts[1:].mean(), atol=4 * math.sqrt(200 * 0.2 * 0.8))


@pytest.mark.parametrize(
    ("utilities", "percentile"), [([1, 1, 1, 1], 35), ([1, 1, 2, 2], 30), ([1, 1, 6, 6], 25)]
)
def test_the_pacer_relaxes_when_utility_is_flat_and_tightens_after_a_jump(utilities, percentile):
    rule = Oort(pacer_step=2, pacer_delta=5.0)
    state = known({}, limit=30.0, utilities=utilities)
    assert rule.paced(state).percentile == percentile
    odd = state._replace(utilities=(*utilities, 1.0))
    assert rule.paced(odd).percentile == 30.0


def test_oort_learns_utilities_and_times_from_replies():
    strategy = Rounds(FedAvg(), selection=Oort(), clients=2, over_selection=2.0)
    run(strategy, [1.0, 2.0, 3.0, 4.0])
    records = strategy.chooses.known.records
    assert records[node_id(1)] == (2.0, 2.0, 1, 1)
    assert records[node_id(3)] == (None, 2.0, 0, 0)  # it took at least so long


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Oort(epsilon=2.0), "epsilon is 2.0; it must lie between 0 and 1"),
        (lambda: Oort(window=0.5), "window is 0.5"),
        (lambda: run(Rounds(FedAvg(), selection=Oort(loss_key="cost")), 12), "'cost'"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
