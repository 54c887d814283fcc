"""Methods driven by events: equalities with others, closed forms, golden schedules."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from quadratics import LR, record, run
from stand_ins import Scripted, driven

from fl.errors import ConfigError, SimulationError
from fl.flower.identity import assume_identity, client_of, node_id
from fl.flower.private import give_id
from fl.randomness import generator
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.strategies import (
    CA2FL,
    FADAS,
    FAVAS,
    AsyncDiLoCo,
    AsyncFedAvg,
    AsyncSGD,
    FedAsync,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedFix,
    QuAFL,
    RennalaSGD,
    RingmasterASGD,
)
from fl.strategies.drivers.tasks import Tasks
from fl.strategies.staleness import ConstantWeight, Hinge, Polynomial

CENTRES = (1.0, -2.0, 4.0, 0.5)


def fedavg(clients=4):
    return flower.FedAvg(
        fraction_train=1.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
        fraction_evaluate=0.0,
    )


def contacts(kind, **changes):
    arguments = {"contacted": 4, "local_steps": 5, "waiting_s": 1.0, "interaction_s": 1.0}
    return driven(kind, **(arguments | changes))


def f_80(m=10):
    """Task times of the FedFix paper's scenario F-80: from 1 down to 0.2."""
    return [1 - i * 0.8 / (m - 1) for i in range(m)]


# ---- what is asked for ---------------------------------------------------------------------------


def test_a_method_pulls_what_has_arrived_and_not_all_that_is_in_flight(monkeypatch):
    asked, pull = [], SimGrid.pull_messages

    def pull_messages(grid, ids):
        asked.append(len(ids))
        return pull(grid, ids)

    monkeypatch.setattr(SimGrid, "pull_messages", pull_messages)
    step_s = [1.0 + i / 8 for i in range(20)]
    ran = run(driven(FedBuff, buffer_size=2, concurrency=20), [0.0] * 20, step_s, num_rounds=15)
    assert 30 <= sum(asked) <= len(ran.of(Event.UPLOAD_END))


# ---- staleness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "s", [ConstantWeight(), Polynomial(0.5), Polynomial(2), Hinge(10, 4), Hinge(0.5)]
)
def test_a_staleness_weight_is_1_for_fresh_updates_and_does_not_increase(s):
    weights = [s(tau) for tau in range(30)]
    assert weights[0] == 1
    assert all(0 < b <= a for a, b in pairwise(weights))


def test_staleness_weights_have_the_papers_values():
    assert Polynomial(0.5)(3) == pytest.approx(1 / 2)
    assert [Polynomial(0)(tau) for tau in range(5)] == [ConstantWeight()(tau) for tau in range(5)]
    assert Hinge(10, 4)(4) == 1
    assert Hinge(10, 4)(6) == pytest.approx(1 / 21)


def test_a_negative_exponent_is_refused_because_stale_updates_would_weigh_more():
    with pytest.raises(ConfigError, match="older updates weigh more"):
        Polynomial(-0.5)


# ---- FedAsync ------------------------------------------------------------------------------------


def test_with_one_task_at_a_time_nothing_is_stale_and_alpha_1_trains_one_client_after_another():
    ran = run(driven(FedAsync, alpha=1.0, concurrency=1, rho=0), CENTRES, [1.0] * 4, num_rounds=20)
    assert {staleness for _, _, staleness in ran.applied()} == {0}
    w = 0.0
    for (_, client, _), model in zip(ran.applied(), ran.models[1:], strict=True):
        w = w - LR * (w - CENTRES[client])
        assert model == pytest.approx(w, abs=1e-6)


def test_of_two_updates_that_arrive_together_the_second_is_one_version_older():
    ran = run(driven(FedAsync, concurrency=2, rho=0), CENTRES[:2], [1.0, 1.0], num_rounds=2)
    assert [staleness for _, _, staleness in ran.applied()] == [0, 1]
    assert ran.times[1:] == [1.0, 1.0]


def test_an_update_beyond_the_most_staleness_is_discarded_and_its_slot_used_again():
    strategy = driven(FedAsync, concurrency=2, rho=0, max_staleness=3)
    ran = run(strategy, CENTRES[:2], [1.0, 10.0], num_rounds=30)
    discarded = ran.of(Event.DISCARDED)
    assert discarded
    assert all(event[5] > 3 for event in discarded)
    assert max(staleness for _, _, staleness in ran.applied()) <= 3
    assert [event[0] for event in discarded][:2] == [10.0, 20.0]


@pytest.mark.parametrize("s", [ConstantWeight(), Polynomial(0.5)])
def test_fedasync_anchored_at_the_client_is_fedbuff_with_a_buffer_of_one(s):
    times = [1.0, 1.7, 2.9, 0.6]
    a = run(
        driven(FedAsync, alpha=0.6, anchor="client", staleness=s, rho=0, concurrency=3),
        CENTRES,
        times,
        num_rounds=40,
    )
    b = run(
        driven(FedBuff, buffer_size=1, server_optimizer=FedAvg(0.6), staleness=s, concurrency=3),
        CENTRES,
        times,
        num_rounds=40,
    )
    assert a.times == b.times
    np.testing.assert_allclose(a.models, b.models, rtol=1e-6)


# ---- FedBuff -------------------------------------------------------------------------------------


def test_fedbuff_with_a_full_buffer_and_equal_speeds_is_fedavg():
    ran = run(
        driven(FedBuff, buffer_size=4, concurrency=4), CENTRES, [2.0] * 4, num_rounds=8, steps=3
    )
    rounds = run(fedavg(), CENTRES, [2.0] * 4, num_rounds=8, steps=3)
    np.testing.assert_allclose(ran.models, rounds.models, rtol=1e-5)
    assert ran.times == rounds.times
    assert {staleness for _, _, staleness in ran.applied()} == {0}


def test_fedbuff_of_one_without_discount_is_asynchronous_fedavg_with_identical_weights():
    times = [1.0, 1.7, 2.9, 0.6]
    a = run(
        driven(
            FedBuff,
            buffer_size=1,
            server_optimizer=FedAvg(0.3),
            staleness=ConstantWeight(),
            concurrency=4,
        ),
        CENTRES,
        times,
        num_rounds=40,
    )
    b = run(
        driven(AsyncFedAvg, num_clients=4, weights="identical", eta=0.3, concurrency=4),
        CENTRES,
        times,
        num_rounds=40,
    )
    np.testing.assert_allclose(a.models, b.models, rtol=1e-6)


def test_at_equal_speeds_staleness_is_bounded_by_buffer_and_concurrency():
    ran = run(
        driven(FedBuff, buffer_size=10, concurrency=19), [0.0] * 40, [1.0] * 40, num_rounds=40
    )
    found = {staleness for _, _, staleness in ran.applied()}
    assert max(found) == (10 + 19 - 2) // 10 == 2


def test_mean_staleness_is_concurrency_minus_1_over_the_buffer_whatever_the_durations():
    def exponential(client, dispatch):
        return float(generator(0, "duration", client, dispatch).exponential())

    ran = run(
        driven(FedBuff, buffer_size=10, concurrency=100), [0.0] * 300, exponential, num_rounds=600
    )
    late = [staleness for _, _, staleness in ran.applied()][1000:]
    # Staleness of one update spreads about its mean by some 10, and 5,000 updates of which about
    # every hundredth is independent leave a standard error of 1.4 at the very most.
    assert np.mean(late) == pytest.approx(99 / 10, abs=0.6)


def test_server_momentum_is_a_heavy_ball():
    eta, beta = 0.5, 0.9
    ran = run(
        driven(FedBuff, buffer_size=1, server_optimizer=FedAvgM(eta, beta), concurrency=1),
        [3.0],
        [1.0],
        num_rounds=6,
    )
    w = u = 0.0
    for model in ran.models[1:]:
        u = beta * u - LR * (w - 3.0)
        w = w + eta * u
        assert model == pytest.approx(w, abs=1e-5)


# ---- the general theory: asynchronous FedAvg and FedFix ------------------------------------------


def weights(strategy, times, num_rounds):
    """Returns what each client's last change was multiplied with: all changes are LR."""
    ran = run(
        strategy, [0.0] * len(times), times, num_rounds=num_rounds, gradient=lambda _, w: 0 * w - 1
    )
    moves = dict(zip(ran.times[1:], np.diff(np.array(ran.models)[:, 0]) / LR, strict=True))
    return {client: moves[time] for time, client, _ in ran.applied()}


@pytest.mark.slow
def test_asynchronous_weights_of_clients_that_always_work_tend_to_those_of_the_authors_code():
    apart = [t + 1e-4 * client for client, t in enumerate(f_80())]  # no two answer at once
    found = weights(driven(AsyncFedAvg, num_clients=10, eta=1.0), apart, num_rounds=6000)
    golden = [2.128, 1.939, 1.750, 1.561, 1.371, 1.182, 0.993, 0.804, 0.615, 0.426]
    assert [found[client] for client in range(10)] == pytest.approx(golden, rel=0.01)


@pytest.mark.parametrize(("client", "golden"), [(0, 0.2), (9, 0.1)])
def test_fedfix_weights_of_clients_that_always_work_tend_to_those_of_the_authors_code(
    client, golden
):
    slopes = np.zeros(10)
    slopes[client] = -1.0
    ran = run(
        driven(FedFix, num_clients=10, interval_s=0.5),
        [0.0] * 10,
        f_80(),
        num_rounds=1000,
        gradient=lambda i, w: 0 * w + np.float32(slopes[i]),
    )
    moves = np.diff(np.array(ran.models)[:, 0]) / LR
    assert moves[moves > 0][-1] == pytest.approx(golden, rel=0.01)


def test_at_equal_speeds_unbiased_weights_are_1():
    times = [2.0] * 4
    a = run(
        driven(AsyncFedAvg, num_clients=4, concurrency=4, eta=0.3), CENTRES, times, num_rounds=40
    )
    b = run(
        driven(AsyncFedAvg, num_clients=4, weights="identical", concurrency=4, eta=0.3),
        CENTRES,
        times,
        num_rounds=40,
    )
    np.testing.assert_allclose(a.models, b.models, rtol=1e-6)


def test_asynchronous_fedavg_moves_as_far_as_a_round_in_the_time_of_one():
    slope = {"gradient": lambda _, w: 0 * w - 1}
    ran = run(driven(AsyncFedAvg, num_clients=4), CENTRES, [2.0] * 4, num_rounds=12, **slope)
    rounds = run(fedavg(), CENTRES, [2.0] * 4, num_rounds=3, **slope)
    assert ran.times[4::4] == rounds.times[1:]
    np.testing.assert_allclose(ran.models[4::4], rounds.models[1:], rtol=1e-5)


def test_fedfix_takes_in_who_has_finished_at_each_tick():
    ran = run(
        driven(FedFix, num_clients=3, interval_s=0.5), [0.0] * 3, [1.0, 0.6, 0.2], num_rounds=4
    )
    windows = defaultdict(dict)
    for time, client, staleness in ran.applied():
        windows[time][client] = staleness
    assert windows == {
        0.5: {2: 0},
        1.0: {0: 1, 1: 1, 2: 0},
        1.5: {2: 0},
        2.0: {0: 1, 1: 1, 2: 0},
    }
    assert ran.times == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_fedfix_at_the_clients_common_pace_is_fedavg():
    ran = run(driven(FedFix, num_clients=4, interval_s=2.0), CENTRES, [2.0] * 4, num_rounds=8)
    rounds = run(fedavg(), CENTRES, [2.0] * 4, num_rounds=8)
    np.testing.assert_allclose(ran.models, rounds.models, rtol=1e-5)
    assert ran.times == rounds.times


def test_ticks_while_nobody_is_there_are_no_versions():
    away = Scripted(2, {0: [3.5, 60.5], 1: [3.5, 60.5]})
    strategy = driven(FedFix, num_clients=2, interval_s=1.0)
    ran = run(strategy, CENTRES[:2], [0.5, 0.5], num_rounds=6, availability=away)
    # Those of 1, 2 and 3 s; at 4 s the answers of 3.5 s are there, and nobody; then from 62 s on.
    assert ran.times == [0.0, 1.0, 2.0, 3.0, 4.0, 62.0, 63.0]


def test_a_tick_without_answers_is_a_version_of_the_same_model():
    ran = run(driven(FedFix, num_clients=1, interval_s=1.0), [1.0], [2.5], num_rounds=3)
    np.testing.assert_array_equal(ran.models[1], ran.models[0])
    np.testing.assert_array_equal(ran.models[2], ran.models[0])
    assert not np.array_equal(ran.models[3], ran.models[2])


@pytest.mark.parametrize(
    ("strategy", "fixed_point"),
    [
        # sum c_i / t_i over sum 1 / t_i, with t = (1, 0.2) and c = (0, 1); else the mean.
        (driven(AsyncFedAvg, num_clients=2, weights="identical", eta=0.2, concurrency=2), 5 / 6),
        (driven(AsyncFedAvg, num_clients=2, eta=0.2, concurrency=2), 1 / 2),
        (driven(FedFix, num_clients=2, interval_s=0.3, eta=0.2), 1 / 2),
    ],
    ids=["identical", "unbiased", "fedfix"],
)
def test_speed_moves_the_fixed_point_unless_weights_undo_it(strategy, fixed_point):
    ran = run(strategy, [0.0, 1.0], [1.0, 0.2], num_rounds=2000)
    assert np.mean(ran.models[-200:]) == pytest.approx(fixed_point, abs=0.01)


# ---- asynchronous SGD ----------------------------------------------------------------------------


@pytest.mark.parametrize("of_the_client", [1, 7])
def test_asynchronous_sgd_with_one_worker_is_sgd_whatever_the_client_would_do(of_the_client):
    ran = run(driven(AsyncSGD, concurrency=1), [3.0], [1.0], num_rounds=10, steps=of_the_client)
    w = [3.0 * (1 - (1 - LR) ** t) for t in range(11)]
    np.testing.assert_allclose(np.array(ran.models)[:, 0], w, rtol=1e-5, atol=1e-7)


def test_with_n_workers_of_equal_speed_every_gradient_is_n_minus_1_versions_old():
    def staggered(client, dispatch):
        return 1.0 + (dispatch == 0) * client / 4  # or all answer, and are answered, at once

    ran = run(driven(AsyncSGD, concurrency=4), CENTRES, staggered, num_rounds=40)
    assert [staleness for _, _, staleness in ran.applied()][4:] == [3] * 36


def test_mean_delay_of_workers_that_are_always_busy_is_n_minus_1():
    ran = run(driven(AsyncSGD, concurrency=4), CENTRES, [1.0, 0.3, 2.2, 0.7], num_rounds=2000)
    found = [staleness for _, _, staleness in ran.applied()]
    # Versions since the start count each update once, minus what is still in flight.
    assert np.mean(found) == pytest.approx(3, abs=0.02)


def test_rennala_is_minibatch_sgd_on_gradients_of_the_current_model():
    strategy = driven(RennalaSGD, batch=3, concurrency=4)
    ran = run(strategy, CENTRES, [1.0, 0.3, 2.2, 0.7], num_rounds=12)
    by_version = defaultdict(list)
    for time, client, staleness in ran.applied():
        assert staleness == 0
        by_version[time].append(client)
    w = 0.0
    for time, model in zip(ran.times[1:], ran.models[1:], strict=True):
        clients = by_version[time]
        assert len(clients) == 3
        w = w - LR * np.mean([w - CENTRES[client] for client in clients])
        assert model == pytest.approx(w, abs=1e-5)


def test_ringmaster_ignores_gradients_of_delay_r_and_more():
    strategy = driven(RingmasterASGD, max_delay=4, concurrency=4)
    ran = run(strategy, CENTRES, [0.2, 0.2, 0.2, 5.0], num_rounds=200)
    assert max(staleness for _, _, staleness in ran.applied()) < 4
    before_the_end = [event for event in ran.of(Event.DISCARDED) if event[0] < ran.times[-1]]
    assert {event[2] for event in before_the_end} == {3}
    assert all(event[5] >= 4 for event in before_the_end)


def test_adaptive_steps_shrink_as_concurrency_over_delay():
    strategy = driven(AsyncSGD, concurrency=2)
    ran = run(strategy, [0.0, 1.0], [1.0, 8.5], num_rounds=9, gradient=lambda c, w: 0 * w - c)
    # Worker 0 moves nothing; worker 1's gradient of -1 comes with tau = 8 and C = 2.
    assert [s for _, client, s in ran.applied() if client == 1] == [8]
    assert ran.models[-1] == pytest.approx(LR * 2 / 8)


# ---- interrupted clients -------------------------------------------------------------------------


def test_favas_at_equal_speeds_averages_the_server_and_all_one_step_models():
    strategy = contacts(FAVAS, local_steps=1)
    ran = run(strategy, CENTRES, [1.0] * 4, num_rounds=1, w0=2.0)
    one_step = [2.0 - LR * (2.0 - c) for c in CENTRES]
    assert ran.models[1] == pytest.approx((2.0 + sum(one_step)) / 5)
    assert ran.times == [0.0, 1.0]


@pytest.mark.parametrize("kind", [FAVAS, QuAFL])
def test_without_a_number_of_steps_polled_clients_do_what_they_do_elsewhere(kind):
    times = [0.2, 0.5, 0.9, 3.0]
    own = run(contacts(kind, local_steps=None), CENTRES, times, num_rounds=20, steps=3)
    told = run(contacts(kind, local_steps=3), CENTRES, times, num_rounds=20)
    np.testing.assert_array_equal(own.models, told.models)
    longer = run(contacts(kind, local_steps=4), CENTRES, times, num_rounds=20)
    assert not np.array_equal(own.models, longer.models)


def test_versions_between_polls_are_no_staleness():
    ran = run(contacts(FAVAS, contacted=1), CENTRES, [0.2] * 4, num_rounds=20)
    assert ran.grid.trace.staleness() is None
    gaps = ran.grid.trace.poll_gap()
    # With one client polled at a time, each version is the last poll of exactly one.
    assert gaps["updates"] == 20
    assert gaps["max"] >= 3


def test_favas_without_weights_has_quafls_server_rule_in_the_first_round():
    times = [0.2, 0.5, 0.9, 3.0]
    favas = run(contacts(FAVAS, alpha="none"), CENTRES, times, num_rounds=1, w0=2.0)
    quafl = run(contacts(QuAFL), CENTRES, times, num_rounds=1, w0=2.0)
    np.testing.assert_allclose(favas.models, quafl.models, rtol=1e-6)


def test_an_interrupted_client_returns_the_whole_steps_it_had_time_for():
    ran = run(contacts(FAVAS, alpha="none"), CENTRES, [0.2, 0.5, 0.9, 3.0], num_rounds=1, w0=2.0)
    steps = [5, 2, 1, 0]  # of at most 5, in 1 s
    models = [c + (1 - LR) ** q * (2.0 - c) for c, q in zip(CENTRES, steps, strict=True)]
    assert ran.models[1] == pytest.approx((2.0 + sum(models)) / 5)


@pytest.mark.parametrize("alpha", ["expected", "stochastic"])
def test_favas_makes_slow_and_fast_clients_add_one_step_a_contact(alpha):
    # Constant gradients g_i, one client a contact, so a client's time between contacts varies.
    added = defaultdict(list)

    class Watched(FAVAS):
        def step(self, state, answers):
            new, places = super().step(state, answers)
            for update, start in zip(answers, answers.starts, strict=True):
                added[update.node].append(2 * new.w[0] - state.w[0] - start[0])
            return new, places

    strategy = contacts(Watched, contacted=1, local_steps=6, alpha=alpha)
    times = [0.3, 1.1, 2.5, 9.0]
    run(strategy, CENTRES, times, num_rounds=3000, gradient=lambda c, w: 0 * w - CENTRES[c])
    for client, centre in enumerate(CENTRES):
        late = added[node_id(client)][100:]  # when the means are known well enough
        assert np.mean(late) == pytest.approx(LR * centre, rel=0.05)


def test_quafl_without_steps_keeps_the_sum_of_all_models_and_reaches_consensus():
    sums = []

    class Watched(QuAFL):
        def step(self, state, answers):
            new, places = super().step(state, answers)
            sums.append(new.w + sum(places) - state.w - sum(answers.starts))
            return new, places

    ran = run(contacts(Watched, contacted=2), CENTRES, [1e9] * 4, num_rounds=3, w0=2.0)
    np.testing.assert_allclose(sums, 0, atol=1e-6)
    assert ran.models[-1] == pytest.approx(2.0)


def test_a_client_too_late_for_an_interaction_keeps_its_place():
    strategy = contacts(FAVAS, contacted=2, local_steps=1, alpha="none")
    away = Scripted(2, {1: [0.5]})  # client 1 leaves before the contact at 1 s
    ran = run(strategy, CENTRES[:2], [0.5, 0.5], num_rounds=2, w0=2.0, availability=away)
    assert {client for _, client, _ in ran.applied()} == {0}
    assert node_id(1) not in strategy.starts


@pytest.mark.parametrize("method", [FAVAS, QuAFL])
def test_while_nobody_is_there_no_contact_is_in_vain(method):
    away = Scripted(4, {i: [2.2, 7200.0] for i in range(4)})  # waiting_s is 1 s
    ran = run(contacts(method), CENTRES, [0.1] * 4, num_rounds=9, availability=away)
    assert 7200.0 < ran.times[-1] < 7220.0


def test_contacts_that_nobody_can_answer_in_time_stop_the_run_with_the_remedy():
    faults = Faults(message_loss=1.0)
    with pytest.raises(SimulationError, match=r"within strategy\.interaction_s, 1 s: raise it"):
        run(contacts(FAVAS), CENTRES, [0.5] * 4, num_rounds=1, faults=faults)


# ---- what all of them share ----------------------------------------------------------------------

ALL = {
    "fedasync": lambda: driven(FedAsync, concurrency=3, rho=0),
    "fedbuff": lambda: driven(FedBuff, buffer_size=2, concurrency=3),
    "ca2fl": lambda: driven(CA2FL, buffer_size=2, concurrency=3, population=4),
    "fadas": lambda: driven(FADAS, buffer_size=2, concurrency=3),
    "async_fedavg": lambda: driven(AsyncFedAvg, num_clients=4),
    "fedfix": lambda: driven(FedFix, num_clients=4, interval_s=0.8),
    "async_sgd": lambda: driven(AsyncSGD, concurrency=3),
    "async_diloco": lambda: driven(AsyncDiLoCo, concurrency=3, inner_steps=2),
    "favas": lambda: contacts(FAVAS, contacted=2),
    "quafl": lambda: contacts(QuAFL, contacted=2),
}


@pytest.mark.parametrize("name", ALL)
def test_clients_that_change_nothing_leave_the_model_where_it_is(name):
    times = [1.0, 0.3, 2.2, 0.7]
    ran = run(ALL[name](), CENTRES, times, num_rounds=20, w0=3.0, gradient=lambda _, w: 0 * w)
    np.testing.assert_allclose(ran.models, 3.0, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_twice_the_seconds_for_everything_is_the_same_run_twice_as_slow(name):
    def doubled(strategy, factor):
        if isinstance(strategy.rule, FedFix):
            strategy.rule = replace(strategy.rule, interval_s=factor * strategy.rule.interval_s)
        for key in ("waiting_s", "interaction_s", "retry_s"):
            if hasattr(strategy, key):
                setattr(strategy, key, factor * getattr(strategy, key))
        return strategy

    times = [1.0, 0.375, 2.25, 0.75]
    once = run(doubled(ALL[name](), 1), CENTRES, times, num_rounds=20)
    twice = run(doubled(ALL[name](), 2), CENTRES, [2 * t for t in times], num_rounds=20)
    assert twice.times == [2 * t for t in once.times]
    np.testing.assert_array_equal(twice.models, once.models)


@pytest.mark.parametrize("name", ALL)
def test_a_strategy_without_rounds_says_so_to_who_drives_it_reads_timeout(name):
    with pytest.raises(ConfigError, match="has no rounds"):
        ALL[name]().configure_train(1, ArrayRecord(), ConfigRecord(), None)


def test_clients_that_only_fail_stop_the_run_with_the_last_reason():
    faults = Faults(crash=1.0)
    with pytest.raises(SimulationError, match=r"brought no update.*process crashed"):
        run(driven(FedBuff, concurrency=2), CENTRES, [1.0] * 4, num_rounds=1, faults=faults)


# ---- tasks in flight -----------------------------------------------------------------------------


class WallGrid:
    """A grid like a deployment's: no clock, no control, replies when the test says so."""

    def __init__(self):
        self.pulled, self.ready = 0, {}

    def get_node_ids(self):
        return [node_id(0), node_id(1)]

    def push_messages(self, messages):
        self.sent = list(messages)
        names = [f"m{i}" for i in range(len(self.sent))]
        for name, message in zip(names, self.sent, strict=True):
            give_id(message, name)
        return names

    def pull_messages(self, message_ids):
        self.pulled += 1
        return [self.ready.pop(name) for name in list(message_ids) if name in self.ready]

    def answer(self, i):
        content = RecordDict({"arrays": record([0, 0]), "metrics": MetricRecord({"x": 1.0})})
        self.ready[f"m{i}"] = Message(content, reply_to=self.sent[i])


def test_on_a_deployment_waiting_polls_until_the_time_asked_for():
    assume_identity()
    grid = WallGrid()
    tasks = Tasks(grid, ttl_s=60.0)
    tasks.clock.poll_s = 0.01
    tasks.send(RecordDict(), grid.get_node_ids(), None)
    assert tasks.receive(tasks.now() + 0.05) == []
    assert grid.pulled >= 3
    grid.answer(1)
    ((task, reply),) = tasks.receive(math.inf)
    assert client_of(task.node) == 1
    assert reply.has_content()
    assert len(tasks) == 1


def test_the_reply_of_a_client_that_could_not_be_stopped_is_thrown_away():
    assume_identity()
    grid = WallGrid()
    tasks = Tasks(grid, ttl_s=60.0)
    tasks.clock.poll_s = 0.001
    first, second = tasks.send(RecordDict(), grid.get_node_ids(), None)
    tasks.cancel(first)
    assert len(tasks) == 1
    assert tasks.idle() == [first.node]
    grid.answer(0)
    grid.answer(1)
    assert [task for task, _ in tasks.receive(math.inf)] == [second]
    assert not tasks._cancelled


def test_a_task_of_which_a_deployment_never_speaks_again_has_failed_when_its_time_is_over():
    assume_identity()
    grid = WallGrid()
    tasks = Tasks(grid, ttl_s=0.02)
    tasks.clock.poll_s = 0.005
    sent = tasks.send(RecordDict(), grid.get_node_ids(), None)
    failed = tasks.receive(math.inf)
    assert [task for task, _ in failed] == sent
    assert all(reply.has_error() for _, reply in failed)
    assert len(tasks) == 0
    assert tasks.idle() == grid.get_node_ids()


def test_idle_clients_are_those_that_are_there_and_have_no_task_after_every_change():
    class Numbered(WallGrid):
        numbered, pushed = True, 0

        def present(self):
            return self.there

        def push_messages(self, messages):
            names = [f"m{self.pushed + i}" for i, _ in enumerate(messages)]
            self.pushed += len(names)
            return names

    assume_identity()
    grid, rng = Numbered(), random.Random(0)
    everybody = [node_id(i) for i in range(400)]
    grid.there = everybody
    tasks = Tasks(grid, ttl_s=60.0)
    for _ in range(60):
        some = rng.choice((1, 3, 8, 150))  # a few changes are made one by one
        if rng.random() < 0.2:
            grid.there = sorted(rng.sample(everybody, 300))
        if rng.random() < 0.7:
            tasks.send(RecordDict(), rng.sample(everybody, some), None)
        for task in rng.sample(list(tasks), min(some // 2, len(tasks))):
            tasks.cancel(task)
        nodes = tasks.nodes()
        assert tasks.idle() == [node for node in nodes if not tasks.busy(node)]
