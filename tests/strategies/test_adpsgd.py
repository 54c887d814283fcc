"""AD-PSGD: pairs in virtual time, worked out by hand, and what averaging keeps."""

from __future__ import annotations

import numpy as np
import pytest
from networks import Q3, Given, attacked, run
from stand_ins import Client, Scripted

from fl.attacks import IPM, Optimized, SignFlip
from fl.compression import EF21, ErrorFeedback, Qsgd, Shapes, TopK
from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import ExponentialOnOff
from fl.simulation.world.faults import Faults
from fl.strategies import ADPSGD, Exchange, Pairs
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


# ---- compressed, attacked ------------------------------------------------------------------------

TOP1 = len(TopK(k=1).encode(np.float32([1, 2]), Shapes.vector(2), {}, None)[0])


@pytest.mark.parametrize(
    "channel",
    [
        EF21(TopK(k=1)),
        *(
            pytest.param(channel, marks=pytest.mark.slow)
            for channel in (TopK(k=1), ErrorFeedback(TopK(k=1)), Qsgd(levels=1))
        ),
    ],
)
def test_compressed_pairs_keep_the_mean_and_reach_it(channel):
    n = 6
    method = Pairs(ADPSGD(), topology=Complete(n), seed=1, gamma=0.3)
    method = method.within(Exchange(uplink=channel))
    models = np.random.default_rng(0).normal(size=n)
    ran = run(
        method,
        a=np.ones(n),
        b=np.zeros(n),
        num_rounds=300,
        change=start_at(models),
        step_s=[1.0, 1.3, 1.7, 0.9, 2.3, 1.1],
    )
    later = [model for model, time in zip(ran.models, ran.times, strict=True) if time > 5.0]
    for model in later:
        np.testing.assert_allclose(model.mean(axis=0), models.mean(), rtol=1e-3, atol=1e-4)
    assert np.ptp(later[-1], axis=0).max() < 1e-2 * np.ptp(models)


def test_a_pairs_exchange_is_one_of_choco_with_a_half_for_each():
    steps = np.array([(1.0, 0.0), (0.0, 3.0)])
    method = Pairs(ADPSGD(), topology=PAIR, gamma=0.5).within(Exchange(uplink=TopK(k=1)))
    ran = run(
        method, a=(1, 1), b=(0, 0), num_rounds=3, change=lambda i, x: x + np.float32(steps[i])
    )
    x, hat = np.zeros((2, 2)), np.zeros((2, 2))
    for model in ran.models[1:]:
        for _ in range(2):  # both ask for an exchange in every round
            q = x - hat
            q[np.abs(q) < np.abs(q).max(axis=1, keepdims=True)] = 0.0
            hat = hat + q
            x = x + 0.5 * (hat.mean(axis=0) - hat)
        x = x + steps
        np.testing.assert_allclose(model, x, rtol=1e-5, atol=1e-6)


def test_a_payload_of_a_pair_brings_what_the_other_has_missed():
    n = 4
    method = Pairs(ADPSGD(), topology=Ring(n), gamma=0.5).within(Exchange(uplink=TopK(k=1)))
    ran = run(method, a=np.ones(n), b=np.arange(n), num_rounds=10)
    sent = [e[4] for e in ran.of(Event.TRANSFER)]
    assert {size % TOP1 for size in sent if size < SIZE} == {0}
    assert min(sent) == TOP1
    assert 2 * TOP1 in sent
    assert max(sent) <= SIZE


def test_a_byzantine_node_gives_away_a_forged_model_and_keeps_its_own():
    seen = []

    class Spy(SignFlip):
        def forge(self, honest, own, scene):
            seen.append((honest[:, 0].tolist(), own[:, 0].tolist()))
            return super().forge(honest, own, scene)

    method = attacked(Pairs(ADPSGD(), topology=PAIR), Spy(), [1])
    ran = run(method, a=(1, 1), b=(0, 0), num_rounds=2, change=lambda i, x: x + np.float32(1 + i))
    # The first two exchanges are between two zeros; then the models are 1 and 2.
    assert seen[0] == ([0.0], [0.0])
    assert seen[2] == ([1.0], [2.0])
    # Node 1 gives -1, the negated mean of the honest, twice: first 1 -> 0, then 0 -> 0 / 2.
    honest = 1.0
    for _ in range(2):
        honest = (honest - honest) / 2
    np.testing.assert_allclose(ran.models[2], [[honest + 1] * 2])
    assert ran.grid.trace.faults()["forged"] == len(seen)


def test_against_pairs_an_optimized_attack_sends_the_largest_factor_it_tries():
    """Of 0, 1 and 3."""
    last = []
    for attack in (Optimized(IPM(), evaluations=3), IPM(epsilon=3.0)):
        made = attacked(Pairs(ADPSGD(), topology=PAIR), attack, [0])
        last.append(run(made, a=(1, 1), b=(1, 2), num_rounds=3).models[-1])
    np.testing.assert_array_equal(*last)


def test_storms_and_attacks_over_compressed_pairs_end_no_run():
    n = 8
    made = Pairs(ADPSGD(), topology=Ring(n), retry_s=1.0, gamma=0.3)
    ran = run(
        attacked(made, SignFlip(), [1, 4], uplink=TopK(k=1)),
        a=np.ones(n),
        b=np.arange(n),
        num_rounds=30,
        availability=ExponentialOnOff(n, 0, mean_on_s=20.0, mean_off_s=5.0),
        faults=Faults(dropout=0.1, crash=0.1, message_loss=0.1, detection_s=1.0),
        timeout=50.0,
    )
    assert len(ran.models) == 31
    assert all(np.isfinite(model).all() for model in ran.models)
    assert {"forged", "transfer_lost", "absent"} <= set(ran.grid.trace.faults())


@pytest.mark.parametrize("topology", [DirectedRing(4), RandomMatching(4, seed=0)])
def test_directed_and_changing_graphs_are_refused(topology):
    with pytest.raises(ConfigError, match="an undirected graph that stays"):
        Pairs(ADPSGD(), topology=topology)
    assert Pairs(ADPSGD(), topology=Q3).overlap
