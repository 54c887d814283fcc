"""How asynchronous methods deal with clients that take long, or never answer."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from networks import run as run_network
from quadratics import record, run
from stand_ins import FakeExecutor, FixedWork, ScriptedFaults, driven

from fl.execution.contract import Result
from fl.randomness import generator
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults, TaskFaults
from fl.simulation.world.fleets import mobile
from fl.strategies import (
    ADPSGD,
    AsyncFedAvg,
    AsyncSGD,
    FedAsync,
    FedBuff,
    FedCompass,
    FedFix,
    Pairs,
)
from fl.strategies.drivers.patience import Patience
from fl.topologies import Complete

TIMEOUT_S = 120.0
METHODS = {
    "fedbuff": lambda **given: driven(FedBuff, buffer_size=2, **{"concurrency": 3, **given}),
    "fedasync": lambda **given: driven(FedAsync, rho=0, **{"concurrency": 3, **given}),
    "async_fedavg": lambda **given: driven(AsyncFedAvg, num_clients=4, **given),
    "async_sgd": lambda **given: driven(AsyncSGD, **{"concurrency": 3, **given}),
    "fedcompass": lambda **given: driven(
        FedCompass, num_clients=4, min_steps=1, max_steps=2, **given
    ),
    "fedfix": lambda **given: driven(FedFix, num_clients=4, interval_s=5.0, **given),
}


def most_at_once(ran, since=0.0):
    """Returns the most tasks that a client has had at a time since then, by client."""
    changes = [(t, +1, i) for t, _, i, *_ in ran.of(Event.DISPATCH)]
    changes += [(t, -1, i) for t, _, i, *_ in ran.of(Event.UPLOAD_END)]
    now, most = Counter(), Counter()
    for time, change, client in sorted(changes):  # what ends, ends before something begins
        now[client] += change
        if time >= since:
            most[client] = max(most[client], now[client])
    return most


@pytest.mark.parametrize("name", METHODS)
def test_clients_slower_than_the_timeout_contribute_and_have_one_task_at_a_time(name):
    step_s = [10.0, 12.0, 200.0, 220.0]
    ran = run(METHODS[name](), [0.0] * 4, step_s, num_rounds=150, timeout=TIMEOUT_S)
    applied = Counter(client for _, client, _ in ran.applied())
    assert set(applied) == {0, 1, 2, 3}
    assert max(most_at_once(ran).values()) == 1
    # A slow client is never idle for long: it contributes about once in the time of its tasks.
    for client in (2, 3):
        tasks = ran.times[-1] / (step_s[client] * (2 if name == "fedcompass" else 1))
        assert applied[client] >= math.floor(tasks * 0.5) >= 1


def test_a_late_client_frees_its_slot_and_its_answer_counts_when_it_comes():
    # One slot; client 1 takes 50 s, client 0 takes 1 s and is drawn first, with this seed.
    strategy = driven(FedBuff, buffer_size=1, concurrency=1, seed=3)
    ran = run(strategy, [0.0, 0.0], [1.0, 50.0], num_rounds=60)
    begun = [(t, i) for t, _, i, *_ in ran.of(Event.DISPATCH)]
    late = next(t for t, i in begun if i == 1)
    after = next(t for t, i in begun if i == 0 and t > late)
    assert after == late + 3 * 1.0  # client 1 has never answered, the longest task took 1 s
    # Client 0 makes a version a second from then on, until 1 s before client 1 answers.
    assert (late + 50.0, 1, 46) in ran.applied()
    assert ran.of(Event.EXPIRED) == []


def test_without_patience_a_slot_is_held_until_the_answer_comes():
    strategy = driven(FedBuff, buffer_size=1, concurrency=1, patience=None)
    ran = run(strategy, [0.0, 0.0], [1.0, 1e4], num_rounds=9, timeout=TIMEOUT_S)
    waits = [b - a for a, b in itertools.pairwise(t for t, *_ in ran.of(Event.DISPATCH))]
    assert set(waits) <= {1.0, 1e4}
    assert 1e4 in waits


@pytest.mark.parametrize(
    ("silent_from", "asked_again"),
    [
        # It has taken 1 s, so that a task is lost after 9 s, the next after 18 s, 36 s, ...
        (1, [1.0, 10.0, 28.0, 64.0, 136.0]),
        # It has never answered, and others take 1 s: lost after 300 s, then 600 s, ...
        (0, [0.0, 300.0, 900.0, 2100.0]),
    ],
)
def test_a_silent_client_is_asked_again_after_longer_and_longer(silent_from, asked_again):
    lost = {(1, k): TaskFaults(lose_upload=True) for k in range(silent_from, 99)}
    ran = run(
        driven(FedBuff, buffer_size=1, concurrency=2),
        [0.0, 0.0],
        [1.0, 1.0],
        num_rounds=2500,
        faults=ScriptedFaults(script=lost),
    )
    asked = [t for t, _, i, *_ in ran.of(Event.DISPATCH) if i == 1]
    assert asked[silent_from : silent_from + len(asked_again)] == asked_again


def test_a_client_that_answers_after_all_is_waited_for_as_long_as_it_took_then():
    # Client 1's third task takes 100 s where it took 1 s: it is asked again meanwhile, and both
    # answers count. From then on 100 s are nothing unusual.
    seconds = lambda client, k: 100.0 if (client, k) in {(1, 2), (1, 9)} else 1.0  # noqa: E731
    ran = run(driven(AsyncFedAvg, num_clients=2), [0.0, 0.0], seconds, num_rounds=500)
    asked = [t for t, _, i, *_ in ran.of(Event.DISPATCH) if i == 1]
    assert asked[:6] == [0.0, 1.0, 2.0, 2 + 9.0, 11 + 18.0, 29 + 36.0]
    tasks = len([t for t, client, _ in ran.applied() if client == 1])
    assert tasks == len(ran.of(Event.UPLOAD_END)) - len([a for a in ran.applied() if a[1] == 0])
    ninth = next(row[0] for row in ran.of(Event.COMPUTE_START) if row[2:4] == (1, 9))
    assert not [t for t in asked if ninth < t < ninth + 100.0]


@pytest.mark.parametrize("name", METHODS)
def test_a_client_that_was_asked_again_has_one_task_at_a_time_when_it_has_answered(name):
    seconds = lambda client, k: 100.0 if (client, k) == (1, 2) else 1.0 + 0.1 * client  # noqa: E731
    ran = run(METHODS[name](concurrency=9), [0.0] * 4, seconds, num_rounds=900)
    assert most_at_once(ran)[1] > 1
    late = next(t for t, _, i, k, *_ in ran.of(Event.UPLOAD_END) if (i, k) == (1, 2))
    assert set(most_at_once(ran, late + 20.0).values()) == {1}
    assert (1, 2) in {row[2:4] for row in ran.of(Event.APPLIED)}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_phones_that_drop_out_do_not_stop_asynchronous_fedavg(seed):
    # As `fl strategy=async_fedavg`: nobody hears of a phone that dropped out for a minute.
    fleet = mobile(100, seed)

    def answer(request):
        w = request.payload.content["arrays"].to_numpy_ndarrays()[0]
        return Result(content=_reply(w))

    grid = SimGrid(fleet, FakeExecutor(answer), planner=lambda *_: FixedWork(3e7))
    times = []

    def evaluate(version, arrays):
        times.append(grid.clock.now())
        if times[-1] > 40.0:
            raise StopIteration

    strategy = driven(AsyncFedAvg, num_clients=100, weights="identical", seed=seed)
    with pytest.raises(StopIteration):
        strategy.start(
            grid, record(np.zeros(4000)), num_rounds=10**6, timeout=120.0, evaluate_fn=evaluate
        )
    steps = np.histogram(times, bins=np.arange(0.0, 41.0, 5.0))[0]
    assert (steps > 0).all()
    assert steps[-1] > 0.3 * steps[0]


def _reply(w):
    from flwr.app import MetricRecord, RecordDict

    metrics = MetricRecord({"num-examples": 1, "train-loss": 0.0, "steps": 1})
    return RecordDict({"arrays": record(w), "metrics": metrics})


# ---- without a server ----------------------------------------------------------------------------


def test_a_node_slower_than_the_timeout_takes_part_in_ad_psgd():
    ran = run_network(
        Pairs(ADPSGD(), topology=Complete(3)),
        a=(1, 1, 1),
        b=(0, 0, 9),
        num_rounds=40,
        step_s=[10.0, 10.0, 200.0],
        timeout=TIMEOUT_S,
    )
    applied = Counter(row[2] for row in ran.of(Event.APPLIED))
    assert applied[2] == math.floor(ran.times[-1] / 200.0)
    assert ran.of(Event.EXPIRED) == []


def test_a_node_of_ad_psgd_that_is_never_heard_of_again_begins_anew_and_its_late_gradient_counts():
    # Node 1's second task is 50 times as long as the first: lost after 9 s, done after 50 s.
    ran = run_network(
        Pairs(ADPSGD(), topology=Complete(2)),
        a=(1, 1),
        b=(0, 4),
        num_rounds=60,
        step_s=lambda i, k: 50.0 if (i, k) == (1, 1) else 1.0,
    )
    answered = {(row[2], row[3]) for row in ran.of(Event.APPLIED)}
    sent = [(t, k) for t, _, i, k, *_ in ran.of(Event.DISPATCH) if i == 1]
    assert sent[:3] == [(0.0, 0), (1.0, 1), (10.0, 2)]
    assert {(1, 0), (1, 1), (1, 2)} <= answered


def test_all_nodes_of_ad_psgd_that_vanish_without_a_word_come_back():
    faults = Faults(dropout=0.2)  # and nobody ever learns of it
    ran = run_network(
        Pairs(ADPSGD(), topology=Complete(4), seed=3),
        a=[1.0] * 4,
        b=range(4),
        num_rounds=50,
        faults=faults,
    )
    assert {row[2] for row in ran.of(Event.APPLIED)} == {0, 1, 2, 3}
    assert ran.times[-1] < 1e4


# ---- the bounds ----------------------------------------------------------------------------------


def test_patience_follows_the_longest_task_which_fades():
    patience = Patience(2.0)
    assert (patience.late_after(7), patience.lost_after(7)) == (12 * 3600.0, math.inf)
    for seconds in (5.0, 1.0, 1.0):
        patience.measured(1, seconds)
    longest = 5.0 * 0.9 * 0.9
    assert patience.late_after(1) == pytest.approx(2 * longest)
    assert patience.lost_after(1) == pytest.approx(6 * longest)
    patience.measured(2, 20.0)
    assert patience.late_after(1) == pytest.approx(2 * longest)
    assert patience.late_after(7) == 40.0  # nobody knows client 7: by the longest of all
    assert patience.lost_after(7) == 4000.0
    patience.lost(1)
    patience.lost(1)
    assert patience.lost_after(1) == pytest.approx(4 * 6 * longest)
    patience.measured(1, 5.0)
    assert patience.lost_after(1) == 30.0
    assert Patience(None).late_after(1) == math.inf


def test_tasks_that_take_no_time_leave_patience_without_measure():
    patience = Patience(3.0)
    patience.measured(1, 0.0)
    assert patience.late_after(1) == patience.late_after(2) == 12 * 3600.0
    assert patience.lost_after(1) == patience.lost_after(2) == math.inf


def test_clients_that_never_answer_do_not_hold_all_slots_though_nobody_knows_how_long_tasks_take():
    # The first three that are drawn never answer; a minute is all that the fourth takes.
    silent = {(i, k): TaskFaults(lose_upload=True) for i in range(3) for k in range(9)}
    seed = next(s for s in range(99) if set(first_drawn(4, 3, s)) == {0, 1, 2})
    ran = run(
        driven(FedBuff, buffer_size=1, concurrency=3, seed=seed),
        [0.0] * 4,
        [60.0] * 4,
        num_rounds=3,
        faults=ScriptedFaults(script=silent),
    )
    assert ran.times == [0.0, *(12 * 3600.0 + 60.0 * k for k in (1, 2, 3))]


def first_drawn(n, k, seed):
    return generator(seed, "clients", 0).choice(n, size=k, replace=False).tolist()
