"""AD-PSGD: pairs in virtual time, worked out by hand, and what averaging keeps."""

from __future__ import annotations

import numpy as np
import pytest
from networks import Q3, Given, run
from stand_ins import Client, Scripted

from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import ExponentialOnOff
from fl.simulation.world.faults import Faults
from fl.strategies import ADPSGD, Pairs
from fl.topologies import Complete, DirectedRing, RandomMatching, Ring

PAIR = Given.of([[0.5, 0.5], [0.5, 0.5]])
SIZE = 137  # bytes of a model of two numbers, as a message has it
UP = 8.0 * SIZE  # bit/s: one model a second


def start_at(models):
    """Clients that change nothing, but in their first task by so much."""
    begun = set()

    def change(i, x):
        if i in begun:
            return x
        begun.add(i)
        return x + np.float32(models[i])

    return change


def test_averaging_keeps_the_mean_and_reaches_it():
    n = 8
    method = Pairs(ADPSGD(), topology=Ring(n), seed=1)
    models = np.random.default_rng(0).normal(size=n)
    ran = run(
        method,
        a=np.ones(n),
        b=np.zeros(n),
        num_rounds=80,
        change=start_at(models),
        step_s=[1.0, 1.3, 1.7, 0.9, 2.3, 1.1, 0.7, 3.1],
    )
    later = [model for model, time in zip(ran.models, ran.times, strict=True) if time > 5.0]
    for model in later:
        np.testing.assert_allclose(model.mean(axis=0), models.mean(), rtol=1e-5, atol=1e-6)
    assert np.ptp(later[-1]) < 1e-2 * np.ptp(models)


def test_two_equal_nodes_agree_after_every_exchange_and_step_from_there():
    # Gradients of x^2/2 and (x - 4)^2 / 2 at a snapshot, applied to the average, at the same time.
    ran = run(Pairs(ADPSGD(), topology=PAIR), a=(1, 1), b=(0, 4), num_rounds=3, lr=0.5)
    x = np.zeros(2)
    for t in range(3):
        gradient = x - np.array([0.0, 4.0])
        x = np.full(2, x.mean()) - 0.5 * gradient
        np.testing.assert_allclose(ran.models[t + 1][:, 0], x, rtol=1e-6)
    assert ran.times == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("overlap", "work_s", "times"),
    [
        # Both nodes ask for an exchange of 1 s + 2 x 0.25 s; the second waits for the first.
        (True, 5.0, [0.0, 5.0, 10.0]),  # hidden behind the work
        (True, 1.0, [0.0, 3.0, 6.0]),  # steps at 1.5, 3, 4.5, 6 s: one exchange after the other
        (False, 5.0, [0.0, 8.0, 14.5]),  # after the work; node 0 is 1.5 s ahead from then on
    ],
)
def test_an_exchange_takes_one_crossing_and_a_node_is_in_one_at_a_time(overlap, work_s, times):
    clients = [Client(flops=1.0, up_bps=UP, latency_s=0.25)] * 2
    ran = run(
        Pairs(ADPSGD(), topology=PAIR, overlap=overlap),
        a=(1, 1),
        b=(0, 4),
        num_rounds=2,
        clients=clients,
        step_s=[work_s] * 2,
    )
    assert ran.times == times
    # Two exchanges of two models a round, which all of the first round has ended.
    assert ran.grid.engine.bytes_up >= 4 * SIZE
    assert ran.grid.engine.bytes_down == 0


def test_a_step_waits_for_the_exchange_its_node_is_in():
    clients = [Client(flops=1.0, up_bps=UP, latency_s=0.25)] * 2
    ran = run(
        Pairs(ADPSGD(), topology=PAIR),
        a=(1, 1),
        b=(0, 4),
        num_rounds=2,
        clients=clients,
        step_s=[1.0, 4.0],
    )
    # Node 0 asks at 0 and 1.5 s, node 1 at 0 s: exchanges end at 1.5, 3 and 4.5 s. Node 1's
    # gradient is there at 4 s, in the middle of the third.
    applied = [(e[0], e[2]) for e in ran.of(Event.APPLIED)]
    assert applied[:3] == [(1.5, 0), (4.5, 0), (4.5, 1)]


def test_staleness_counts_what_others_have_done_to_the_model_meanwhile():
    # Node 0 takes 10 s, node 1 takes 1 s and asks node 0 ten times in that time.
    ran = run(Pairs(ADPSGD(), topology=PAIR), a=(1, 1), b=(0, 4), num_rounds=11, step_s=[10.0, 1.0])
    applied = [(e[0], e[2], e[5]) for e in ran.of(Event.APPLIED)]
    first_of_0 = next(row for row in applied if row[1] == 0)
    assert first_of_0 == (10.0, 0, 10.0)
    assert all(staleness <= 1 for _, i, staleness in applied if i == 1)


def test_a_slow_node_holds_nobody_back():
    n = 6
    ran = run(
        Pairs(ADPSGD(), topology=Complete(n)),
        a=np.ones(n),
        b=np.arange(n),
        num_rounds=20,
        step_s=[100.0] + [1.0] * (n - 1),
    )
    steps = [sum(e[2] == i for e in ran.of(Event.APPLIED)) for i in range(n)]
    assert steps == [0] + [24] * (n - 1)
    assert ran.times[-1] == 24.0


def test_the_same_seed_gives_the_same_pairs():
    def last(seed):
        n = 8
        ran = run(
            Pairs(ADPSGD(), topology=Ring(n), seed=seed), a=np.ones(n), b=np.arange(n), num_rounds=5
        )
        return ran.grid.trace.sha256(), ran.models[-1].tobytes()

    assert last(0) == last(0)
    assert last(0) != last(1)


def test_storms_of_faults_end_no_run_early_and_lose_no_reply():
    n = 12
    ran = run(
        Pairs(ADPSGD(), topology=Ring(n), retry_s=1.0),
        a=np.ones(n),
        b=np.arange(n),
        num_rounds=60,
        availability=ExponentialOnOff(n, 0, mean_on_s=20.0, mean_off_s=5.0),
        faults=Faults(dropout=0.1, crash=0.1, message_loss=0.1, detection_s=1.0),
        timeout=50.0,
    )
    assert len(ran.models) == 61
    assert all(np.isfinite(model).all() for model in ran.models)
    faults = ran.grid.trace.faults()
    assert {"dropout", "crash", "departure", "transfer_lost", "absent"} <= set(faults)
    assert ran.grid.trace.counts[Event.APPLIED] == 60 * n


def test_who_is_away_is_asked_by_nobody():
    ran = run(
        Pairs(ADPSGD(), topology=Complete(4), retry_s=5.0),
        a=np.ones(4),
        b=np.zeros(4),
        num_rounds=10,
        change=start_at([1.0, 2.0, 3.0, 4.0]),
        availability=Scripted(4, {}, offline={3}),
    )
    assert not ran.models[-1][3].any()
    assert all(3 not in (e[2], int(e[5])) for e in ran.of(Event.TRANSFER))


@pytest.mark.parametrize("topology", [DirectedRing(4), RandomMatching(4, seed=0)])
def test_directed_and_changing_graphs_are_refused(topology):
    with pytest.raises(ConfigError, match="an undirected graph that stays"):
        Pairs(ADPSGD(), topology=topology)
    assert Pairs(ADPSGD(), topology=Q3).overlap
