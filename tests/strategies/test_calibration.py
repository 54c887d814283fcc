"""CA2FL, FedVARP and multi-momentum: updates that the last ones of all clients calibrate."""

from __future__ import annotations

import heterogeneous
import numpy as np
import pytest
from heterogeneous import DIM, STEPS, Learnt, Losses, cohorts
from quadratics import LR, run
from stand_ins import driven
from test_event_rules import W0, Came, D, drawn, played

from fl.aggregation import Median
from fl.clients import Sgd
from fl.errors import ConfigError
from fl.strategies import (
    CA2FL,
    MIFA,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedNova,
    FedVARP,
    MultiMomentum,
    Rounds,
)
from fl.strategies.event_rule import Arrivals
from fl.strategies.round_rule import Updates
from fl.strategies.staleness import ConstantWeight

N = 4
ZERO = np.zeros(D, np.float32)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def updates(deltas, clients, **more):
    return Updates(
        np.asarray(deltas, np.float32), np.arange(3.0, 3.0 + len(deltas)), clients=clients, **more
    )


def rounds_of(rule, rounds):
    """The models after rounds of (deltas, clients), as a rule makes them."""
    state, models = rule.init(W0, D), []
    for deltas, clients in rounds:
        state = rule.step(state, updates(deltas, clients))
        models.append(state.w)
    return np.array(models)


def drawn_rounds(count, size=2):
    rng = np.random.default_rng(3)
    return [
        (rng.normal(size=(size, D)), [int(i) for i in rng.choice(N, size, replace=False)])
        for _ in range(count)
    ]


# ---- recursions ----------------------------------------------------------------------------------


def test_ca2fl_calibrates_every_update_by_the_last_of_its_client():
    k, eta = 3, 0.7
    arrivals = drawn(40)
    w, h, s, expected = W0.astype(float), np.zeros((N, D)), [], []
    mean = np.zeros(D)  # of the cache, when the buffer was emptied
    for update, _ in arrivals:
        s.append(update.delta - h[update.node])
        h[update.node] = update.delta
        if len(s) == k:
            w = w + eta * (mean + np.mean(s, axis=0))
            mean, s = h.mean(axis=0), []
        expected.append(w)
    twice = any(
        len({u.node for u, _ in arrivals[i : i + k]}) < k for i in range(0, len(arrivals) - k, k)
    )
    assert twice  # a client that is twice in a buffer
    rule = CA2FL(k, FedAvg(eta), population=N)
    np.testing.assert_allclose(played(rule, arrivals), expected, **CLOSE)


def test_fedvarp_is_saga_where_mifa_is_sag():
    eta, rounds = 0.7, drawn_rounds(50)
    saga, sag, y = [W0.astype(float)], [W0.astype(float)], np.zeros((N, D))
    for deltas, clients in rounds:
        new = np.mean(deltas - y[clients], axis=0)
        saga.append(saga[-1] + eta * (y.mean(axis=0) + new))
        sag.append(sag[-1] + eta * (y.mean(axis=0) + len(clients) / N * new))
        y[clients] = deltas
    np.testing.assert_allclose(rounds_of(FedVARP(N, eta), rounds), saga[1:], **CLOSE)
    np.testing.assert_allclose(rounds_of(MIFA(N, eta), rounds), sag[1:], **CLOSE)


@pytest.mark.parametrize("clients", [2, heterogeneous.N], ids=["2 of 8", "all"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9])
def test_multi_momentum_is_its_recursion_under_a_heavy_ball(beta, clients):
    losses, asked = Losses(), cohorts(clients, 50)
    rule = MultiMomentum(heterogeneous.N, beta, FedAvgM(0.5, 0.6))
    learnt = Learnt(rule, Sgd(heterogeneous.LR), asked)
    w, u, m, expected = (
        np.zeros(DIM),
        np.zeros(DIM),
        np.zeros((heterogeneous.N, DIM)),
        [0 * losses.c[0]],
    )
    for cohort in asked:
        away = (1 - heterogeneous.LR * losses.a[cohort]) ** STEPS  # what is left of x - c_i
        deltas = (1 - away) * (losses.c[cohort] - w)
        v = m.mean(axis=0) + np.mean(deltas - m[cohort], axis=0)
        m[cohort] = beta * m[cohort] + (1 - beta) * deltas
        u = 0.6 * u + v
        w = w + 0.5 * u
        expected.append(w)
    np.testing.assert_allclose(learnt.models, expected, rtol=1e-4, atol=2e-4)


def test_the_sum_of_the_momenta_is_kept_as_it_changes():
    rule = MultiMomentum(N, 0.6)
    state = rule.init(W0, D)
    for deltas, clients in drawn_rounds(30):
        state = rule.step(state, updates(deltas, clients))
        np.testing.assert_allclose(state.total, sum(state.latest.values()), **CLOSE)


# ---- identities ----------------------------------------------------------------------------------


def test_ca2fl_of_one_buffer_a_round_is_fedvarp():
    rounds = drawn_rounds(15)
    rule = CA2FL(2, FedAvg(0.5), population=N)
    state = rule.init(W0, D)
    for (deltas, clients), expected in zip(rounds, rounds_of(FedVARP(N, 0.5), rounds), strict=True):
        came = [Came(i, np.float32(x), W0) for i, x in zip(clients, deltas, strict=True)]
        state = rule.step(state, Arrivals(came, [1.0] * len(came)))
        np.testing.assert_allclose(state.w, expected, **CLOSE)


def test_multi_momentum_without_momentum_is_fedvarp():
    rounds = drawn_rounds(15)
    np.testing.assert_array_equal(
        rounds_of(MultiMomentum(N, 0.0, FedAvg(0.5)), rounds), rounds_of(FedVARP(N, 0.5), rounds)
    )


def test_one_client_is_its_own_control_and_what_it_sends_is_the_step():
    rule = MultiMomentum(1, 0.9)
    rounds = [(deltas[:1], [0]) for deltas, _ in drawn_rounds(10)]
    expected = W0 + np.cumsum([deltas[0] for deltas, _ in rounds], axis=0)
    np.testing.assert_allclose(rounds_of(rule, rounds), expected, **CLOSE)


def test_until_a_client_comes_again_ca2fl_is_fedbuff_without_a_discount_and_mifa_falls_short():
    rng = np.random.default_rng(0)
    first = [(Came(i, rng.normal(size=D).astype(np.float32), W0), 0) for i in range(2)]
    buff = played(FedBuff(2, staleness=ConstantWeight()), first)
    np.testing.assert_allclose(played(CA2FL(2, population=N), first), buff, **CLOSE)
    deltas = [update.delta for update, _ in first]
    short = rounds_of(MIFA(N), [(deltas, [0, 1])])[0] - W0
    np.testing.assert_allclose(short, 2 / N * (buff[-1] - W0), **CLOSE)


def test_all_clients_at_once_are_averaged_whatever_is_remembered():
    rounds = drawn_rounds(8, size=N)
    expected = W0 + np.cumsum([np.mean(deltas, axis=0) for deltas, _ in rounds], axis=0)
    for rule in (FedVARP(N), MIFA(N), MultiMomentum(N, 0.0)):
        np.testing.assert_allclose(rounds_of(rule, rounds), expected, **CLOSE)


def test_with_constant_updates_in_the_cache_it_does_not_matter_who_comes():
    rng = np.random.default_rng(5)
    own = rng.normal(size=(N, D)).astype(np.float32)
    everybody, nobody_new = list(range(N)), [0, 0, 1, 0]
    arrivals = [(Came(i, own[i], W0), 0) for i in [*everybody, *nobody_new]]
    models = played(CA2FL(2, population=N), arrivals)
    for before, after in ((3, 5), (5, 7)):  # the steps after the cache is full
        np.testing.assert_allclose(models[after] - models[before], own.mean(axis=0), **CLOSE)
    steps = [(own, everybody), (own[[0, 2]], [0, 2]), (own[[3]], [3])]
    for rule in (FedVARP(N), MultiMomentum(N, 0.0)):
        found = np.diff(rounds_of(rule, steps), axis=0)
        np.testing.assert_allclose(found, np.tile(own.mean(axis=0), (2, 1)), **CLOSE)


@pytest.mark.parametrize("rule", [FedVARP(N), MultiMomentum(N, 0.7)])
def test_the_step_is_the_mean_of_all_clients_on_average_over_who_is_drawn(rule):
    state = rule.init(W0, D)
    for deltas, clients in drawn_rounds(6):
        state = rule.step(state, updates(deltas, clients))
    now = np.random.default_rng(9).normal(size=(N, D)).astype(np.float32)
    pairs = [(i, j) for i in range(N) for j in range(i)]
    steps = [rule.step(state, updates(now[list(p)], p)).w - state.w for p in pairs]
    np.testing.assert_allclose(np.mean(steps, axis=0), now.mean(axis=0), **CLOSE)


@pytest.mark.parametrize("make", [FedVARP, MultiMomentum, CA2FL])
def test_without_n_the_step_is_right_on_average_over_those_that_come(make):
    # Clients 0 to 2 come, the others never do, and client 2 comes for the first time.
    rule = make(2) if make is CA2FL else make()
    rng, state = np.random.default_rng(6), None

    def stepped(state, deltas, clients):
        if make is CA2FL:
            came = [Came(i, np.float32(x), W0) for i, x in zip(clients, deltas, strict=True)]
            return rule.step(state, Arrivals(came, [1.0] * len(came)))
        return rule.step(state, updates(deltas, clients))

    state = rule.init(W0, D)
    for clients in ([0, 1], [1, 0]):
        state = stepped(state, rng.normal(size=(2, D)), clients)
    now = rng.normal(size=(3, D))
    pairs = [(0, 1), (0, 2), (1, 2)]
    steps = [stepped(state, now[list(p)], p).w - state.w for p in pairs]
    np.testing.assert_allclose(np.mean(steps, axis=0), now.mean(axis=0), **CLOSE)
    after = stepped(state, now[[1, 2]], [1, 2])
    np.testing.assert_allclose(after.total, sum(after.latest.values()), **CLOSE)


# ---- on a grid -----------------------------------------------------------------------------------

CENTRES = (1.0, -2.0, 4.0, 0.5)


def test_fast_clients_do_not_pull_ca2fl_to_their_data():
    # Client 0 answers ten times as often as the others: its minimum is 1, that of the mean 0.875.
    times, mean = [0.1, 1.0, 1.1, 1.2], np.mean(CENTRES)
    ends = {}
    for name, rule in (
        ("fedbuff", driven(FedBuff, buffer_size=4, staleness=ConstantWeight(), concurrency=4)),
        ("ca2fl", driven(CA2FL, buffer_size=4, population=4, concurrency=4)),
    ):
        apart = [c + 10 * (i == 0) for i, c in enumerate(CENTRES)]
        ran = run(rule, apart, times, num_rounds=400)
        ends[name] = abs(np.mean(np.array(ran.models[-100:])) - np.mean(apart))
    assert mean < 1
    assert ends["fedbuff"] > 3
    assert ends["ca2fl"] < 1


def test_ca2fl_of_clients_on_quadratics_is_its_recursion_for_50_versions():
    h, eta = np.zeros(4), 0.7

    def step(changes, clients, _):
        v, new = h.mean(), []
        for change, i in zip(changes, clients, strict=True):
            new.append(change - h[i])
            h[i] = change
        return eta * (v + np.mean(new))

    rule = driven(CA2FL, 3, FedAvg(eta), population=4, concurrency=4)
    ran = run(rule, CENTRES, [1.0, 1.7, 3.1, 9.0], num_rounds=50)
    assert max(tau for _, _, tau in ran.applied()) > 5
    np.testing.assert_allclose(
        np.array(ran.models)[:, 0], ran.buffered(CENTRES, 3, step), rtol=1e-4, atol=1e-5
    )


def test_a_buffer_of_all_at_equal_speeds_is_plain_averaging():
    strategy = driven(CA2FL, buffer_size=4, population=4, concurrency=4)
    ran = run(strategy, CENTRES, [2.0] * 4, num_rounds=8)
    w = [0.0]
    for _ in range(8):
        w.append(w[-1] + LR * (np.mean(CENTRES) - w[-1]))
    np.testing.assert_allclose(np.array(ran.models)[:, 0], w, atol=1e-5)


def test_a_robust_rule_bounds_what_a_liar_leaves_in_the_cache():
    rule = CA2FL(3, population=3)
    honest = [Came(i, np.ones(D, np.float32), W0) for i in range(2)]
    given = Arrivals(
        [*honest, Came(2, np.full(D, 1e6, np.float32), W0)],
        [1.0] * 3,
        combine=lambda y: np.median(y, axis=0),
    )
    state = rule.step(rule.init(W0, D), given)
    np.testing.assert_allclose(state.w, W0 + 1, **CLOSE)
    np.testing.assert_allclose(state.total, 3, **CLOSE)
    driven(CA2FL, buffer_size=3, population=4, aggregator=Median())
    Rounds(FedVARP(4), aggregator=Median())


def test_statistics_of_layers_are_not_calibrated():
    rule, place = CA2FL(2, FedAvg(0.5), population=2), slice(3, 5)
    state = rule.init(W0, D)
    for _ in range(3):
        before = state.w
        came = [Came(i, np.full(D, i + 1.0, np.float32), before) for i in range(2)]
        state = rule.step(state, Arrivals(came, [1.0] * 2, statistics=[place]))
        np.testing.assert_allclose(state.w[place] - before[place], 1.5, **CLOSE)
        assert not state.total[place].any()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: CA2FL(population=0), "population is 0"),
        (lambda: CA2FL(0, population=3), "buffer_size is 0"),
        (lambda: CA2FL(2, FedNova(), population=3), "server_optimizer is FedNova"),
        (lambda: FedVARP(population=0), "population is 0"),
        (lambda: MultiMomentum(3, 1.0), r"beta is 1\.0"),
        (lambda: MultiMomentum(3, 0.5, FedVARP(3)), "server_optimizer is FedVARP"),
    ],
)
def test_what_cannot_be_is_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
