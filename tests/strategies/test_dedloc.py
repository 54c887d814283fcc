"""DeDLOC: what volunteers gather together is one large batch, whoever is there and however fast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from islands import LAYOUT, MODEL, crashes, data_of, driven, of, references, run
from stand_ins import Client, Scripted, fleet_of

import fl
from fl.attacks import OwnSignFlip
from fl.clients import Gradient, Sgd
from fl.collectives import Buckets, LoadBalancedAllReduce, RingAllReduce, Stragglers
from fl.compression import Cast, ErrorFeedback, TopK
from fl.errors import ConfigError
from fl.models import flops_per_example
from fl.simulation.kernel.trace import Event
from fl.strategies import Collaboration, DataParallel, DeDLOC, DiLoCo, OuterLamb, OuterSgd
from fl.strategies.dedloc import Report, Speed

D = LAYOUT.size
FLOPS = flops_per_example(MODEL(), (1, 8, 8)).training  # of an example
SAME = data_of(1)  # all workers have all examples: whoever contributes, the mean is the same
ALL = SAME.size(0)
LR = 0.5
PLAIN = OuterSgd(LR, 0.0, nesterov=False)


def peers(seconds, *, examples=32, bps=1e15, latency_s=0.0, **more):
    """Workers whose micro-batches take so long."""
    clients = [
        Client(flops=examples * FLOPS / s, up_bps=bps, down_bps=bps, latency_s=latency_s)
        for s in seconds
    ]
    return fleet_of(clients, **more)


def trained(rounds, fleet, *, target=128, optimizer=PLAIN, data=SAME, batch_size=32, **more):
    of_driver = {"allreduce": LoadBalancedAllReduce(), "batch_size": batch_size, **more}
    rule = DeDLOC(optimizer, target, of_driver.pop("delayed", False))
    strategy = driven(rule, workers=len(fleet), strategy=Collaboration, **of_driver)
    return run(
        strategy,
        rounds,
        workers=len(fleet),
        data=data,
        fleet=fleet,
        rule=Gradient(),
        batch_size=batch_size,
    )


def samples(got):
    return [told["samples"] for r, told in got.result.train_metrics_clientapp.items() if r]


# ---- what a step is ------------------------------------------------------------------------------


def test_steps_are_those_of_one_machine_with_the_whole_batch_under_churn():
    # Whole data in every micro-batch: 1 s, 1.7 s, 0.4 s and 3 s; the second leaves and comes back,
    # and the third crashes in the middle of a micro-batch.
    fleet = peers(
        [1.0, 1.7, 0.4, 3.0],
        examples=ALL,
        availability=Scripted(4, {1: [2.2, 4.0]}),
        faults=crashes((2, 4)),
    )
    got = trained(4, fleet, target=4 * ALL, optimizer=OuterSgd(0.2, 0.9), batch_size=None)
    (everyone,) = references(1, Sgd(lr=1.0))
    everyone.optimizer = torch.optim.SGD(
        everyone.model.parameters(), 0.2, momentum=0.9, nesterov=True
    )
    for row in got.rows[1:]:
        everyone.train(1)
        np.testing.assert_allclose(row, everyone.w, atol=3e-6)
    assert min(samples(got)) >= 4 * ALL
    measured = [told for r, told in got.result.train_metrics_clientapp.items() if r]
    assert [told["joins"] for told in measured] == sorted(told["joins"] for told in measured)
    assert measured[-1]["joins"] == 1  # the second peer; the third has lost its state alone
    assert max(told["peers"] for told in measured) == 4
    islands = {int(told["islands"]) for told in got.result.train_metrics_clientapp.values()}
    assert len(islands) > 1  # there was churn


def test_gradients_weigh_as_much_as_their_samples():
    # One is three times as fast: contributions by client, of each step, are in the trace.
    data = data_of(2)
    fleet = peers([0.5, 1.5], examples=data.size(0))
    got = trained(4, fleet, target=1500, data=data, batch_size=None)
    applied = of(got.run.trace, Event.APPLIED)
    ends, workers = got.times, references(2, Sgd(lr=1.0))
    theta = got.rows[0].astype(np.float64)
    for k in range(4):
        n = np.zeros(2)
        for row in applied:
            if ends[k] < row["time_s"] <= ends[k + 1]:
                n[row["client"]] += data.size(row["client"])
        assert n.sum() == samples(got)[k]
        gradients = []
        for worker in workers:
            worker.w = theta
            worker.train(1)
            gradients.append(theta - worker.w)
        theta = theta - LR * (n @ gradients) / n.sum()
        np.testing.assert_allclose(got.rows[k + 1], theta, atol=3e-6)
    assert n[0] == 3 * n[1] or n[0] == 2 * n[1]


def test_rows_say_how_many_samples_a_step_has_and_of_how_many_peers():
    few = {"num_clients": 4, "num_rounds": 2, "fleet": "uniform", "executor": "serial"}
    run = fl.run(strategy="dedloc", evaluate_every=1, progress=False, **few)
    applied = run.trace.time[run.trace.kind == Event.APPLIED]
    for before, row in zip(run.history[:-1], run.history[1:], strict=True):
        micro_batches = ((applied > before["time_s"]) & (applied <= row["time_s"])).sum()
        assert row["samples"] == 32 * micro_batches
        assert (row["peers"], row["joins"]) == (4, 0)


def test_one_peer_adds_up_its_own_micro_batches():
    alone = trained(3, peers([1.0]), target=96)
    assert alone.times == pytest.approx([0, 3, 6, 9])
    assert samples(alone) == [96] * 3


def test_delayed_gradients_are_one_step_stale_and_hide_the_all_reduce():
    # Two peers, 1 s a micro-batch, 4 a step; their vector takes 1 s and 2 latencies of 0.25 s.
    fleet = peers([1.0, 1.0], examples=ALL, bps=32 * D, latency_s=0.125)
    plain, delayed = (
        trained(4, fleet, target=4 * ALL, batch_size=None, delayed=d) for d in (False, True)
    )
    assert plain.times == pytest.approx([0.0, 3.5, 7.0, 10.5, 14.0])
    assert delayed.times == pytest.approx([0.0, 3.5, 5.5, 7.5, 9.5])
    (worker,) = references(1, Sgd(lr=1.0))
    thetas = [got := plain.rows[0].astype(np.float64), got]  # of steps -1 and 0
    for k in range(4):
        worker.w = thetas[k]
        worker.train(1)
        thetas.append(thetas[-1] - LR * (thetas[k] - worker.w))
    np.testing.assert_allclose(delayed.rows, thetas[1:], atol=3e-6)


# ---- who takes part ------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting_s", [None, 1.0])
def test_no_step_has_fewer_samples_than_the_target_if_somebody_leaves_with_its_own(waiting_s):
    # At 3.1 s two have told of 96 samples each, and one of them goes; it is missed 30 s later.
    changes, faults = {1: [3.1]}, crashes()
    object.__setattr__(faults, "detection_s", 30.0)
    fleet = peers([1.0, 1.0], availability=Scripted(2, changes), faults=faults)
    got = trained(2, fleet, target=256, waiting_s=waiting_s)
    assert min(samples(got)) >= 256
    lost = of(got.run.trace, Event.DISCARDED)
    assert [row["client"] for row in lost] == [1] * 3
    # The other stops at 4 s, when it has 128 and expects as many. It waits until patience ends,
    # 5 s after the last answer, at 3 s, or for waiting_s; and adds up the other half. By then the
    # one that has gone is late in either case, and not waited for again.
    assert got.times[1] == pytest.approx(3 + 5 + 4 if waiting_s is None else 4 + 1 + 4)


def test_who_comes_too_late_loses_what_it_has_and_fetches_the_parameters():
    fleet = peers([1.0, 1.0, 7.0], bps=64 * D)
    got = trained(6, fleet, waiting_s=0.5)
    late = [row for row in of(got.run.trace, Event.DISCARDED) if row["client"] == 2]
    fetched = [row for row in of(got.run.trace, Event.TRANSFER) if row["client"] == 2]
    assert late
    assert fetched
    assert fetched[0]["bytes"] == 4 * D  # plain SGD has no state
    assert 2 not in {row["client"] for row in of(got.run.trace, Event.APPLIED)}


def test_a_joiner_contributes_to_the_step_that_is_gathered_and_fetches_the_optimizers_state():
    fleet = peers([1.0, 1.0], bps=1e9, availability=Scripted(2, {1: [2.5]}, offline=[1]))
    got = trained(1, fleet, target=320, optimizer=OuterSgd(0.2, 0.9))
    (fetched,) = of(got.run.trace, Event.TRANSFER)
    assert fetched["bytes"] == 2 * 4 * D
    clients = [row["client"] for row in of(got.run.trace, Event.APPLIED)]
    # 32 a second of one until 3 s, when the other is seen and fetches, and then of two.
    assert (clients.count(0), clients.count(1)) == (7, 4)


def test_auxiliary_peers_train_nothing_and_carry_what_they_are_given():
    got = trained(3, peers([1.0] * 4, bps=1e6), auxiliary=1)
    assert {row["client"] for row in of(got.run.trace, Event.APPLIED)} == {0, 1, 2}
    # Of three senders S and a helper on equal links: S f_h = 1 + (S - 2) f = xi, 3 f + f_h = 1.
    sent = [0] * 4
    for row in of(got.run.trace, Event.ALL_REDUCE):
        sent[row["client"]] += row["bytes"]
    assert sent == pytest.approx([1.2 * 4 * D * 3] * 4, rel=1e-3)


def test_vectors_are_encoded_once_when_they_are_all_reduced():
    plain, half = (trained(3, peers([1.0, 1.0]), compressor=c) for c in (None, Cast("fp16")))
    sizes = [sum(r["bytes"] for r in of(g.run.trace, Event.ALL_REDUCE)) for g in (plain, half)]
    assert sizes[1] * 2 == pytest.approx(sizes[0], rel=0.01)
    np.testing.assert_allclose(plain.rows, half.rows, atol=2e-3)
    assert (plain.rows[-1] != half.rows[-1]).any()


def test_a_compressor_remembers_what_it_left_out_of_the_sum():
    got = trained(
        12, peers([1.0, 1.0], examples=ALL), target=2 * ALL, batch_size=None,
        compressor=ErrorFeedback(TopK(density=0.2)),
    )  # fmt: skip
    plain = trained(12, peers([1.0, 1.0], examples=ALL), target=2 * ALL, batch_size=None)
    start, end, other = got.rows[0], got.rows[-1], plain.rows[-1]
    moved = np.linalg.norm(end - start) / np.linalg.norm(other - start)
    assert moved > 0.6  # without memory it would be 0.2 of the entries


def test_liars_are_forged_after_they_have_gathered():
    honest, lied = (
        trained(1, peers([1.0, 1.0], examples=ALL), target=2 * ALL, batch_size=None, **more)
        for more in ({}, {"attack": OwnSignFlip(), "byzantine": [1]})
    )
    assert (honest.rows[1] != honest.rows[0]).any()
    forged = of(lied.run.trace, Event.FORGED)
    assert [row["client"] for row in forged] == [1]


# ---- the rule ------------------------------------------------------------------------------------


def test_a_peers_speed_is_hiveminds_average():
    # seconds a sample: 2, then 1; 0.1 of the newest, corrected for the beginning at 0.
    speed = Speed().measured(5, 10.0)
    assert Speed().rate == 0
    assert speed.rate == pytest.approx(0.5)
    expected = (0.1 * 1 + 0.9 * 0.1 * 2) / (1 - 0.9**2)
    assert speed.measured(10, 10.0).rate == pytest.approx(1 / expected)


def test_others_are_estimated_by_what_they_told_and_how_fast_they_are():
    rule = DeDLOC(target_batch=100)
    reports = [Report(40, 8.0, time=10.0), Report(20, 2.0, time=8.0), Report(10, 99.0, 9.0, 5)]
    assert rule.estimated(reports, 12.0) == 40 + 16 + 20 + 8 + 10 + 5
    assert not rule.reached(reports, 12.0)
    assert rule.reached(reports, 12.1)


def lamb_by_hand(w, sizes, gradients, lr, wd, eps=1e-6):
    """You et al., Algorithm 2, one tensor at a time."""
    out = []
    for own, *gs in zip(np.split(w, np.cumsum(sizes)[:-1]), *gradients, strict=True):
        m = v = 0.0
        x = own.astype(np.float64)
        for t, g in enumerate(gs, 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            r = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps) + wd * x
            x = x - lr * np.sqrt((x**2).sum() / (r**2).sum()) * r
        out.append(x)
    return np.concatenate(out)


def test_lamb_is_its_algorithm_tensor_by_tensor():
    rng, sizes = np.random.default_rng(0), (4, 1, 7)
    w = rng.normal(size=12).astype(np.float32)
    gs = [[rng.normal(size=n) for n in sizes] for _ in range(3)]
    rule = OuterLamb(lr=0.1, weight_decay=0.05, clip_norm=None).shaped(sizes)
    state, theta = rule.init(12), w
    for t, g in enumerate(gs):
        theta, state = rule.step(theta, np.concatenate(g), state, t)
    np.testing.assert_allclose(theta, lamb_by_hand(w, sizes, gs, 0.1, 0.05), rtol=2e-6)


def test_a_step_of_lamb_has_the_length_of_the_tensor_whatever_the_gradients():
    rule = OuterLamb(lr=0.1, weight_decay=0.0).shaped((3, 2))
    theta = np.array([3, 0, 4, 0, 0], np.float32)
    for scale in (1e-3, 1e3):
        delta = scale * np.array([1.0, 1.0, 1.0, 1.0, 0.0])
        after, _ = rule.step(theta, delta, rule.init(5), 0)
        assert np.linalg.norm(after[:3] - theta[:3]) == pytest.approx(0.5)
        assert after[3:] == pytest.approx([-0.1, 0], abs=1e-3)  # of no length: Adam's step


def test_lamb_bounds_the_whole_gradient():
    theta, delta = np.ones(4, np.float32), np.array([30.0, 0.0, 40.0, 0.0])
    rule = OuterLamb(weight_decay=0.0, clip_norm=5.0).shaped((2, 2))
    _, state = rule.step(theta, delta, rule.init(4), 0)
    np.testing.assert_allclose(state["m"], 0.1 * delta / 10)


def test_who_cannot_tell_lamb_of_the_tensors_is_refused_and_data_parallel_can():
    with pytest.raises(ConfigError, match="OuterLamb, which steps tensor by tensor"):
        DiLoCo(optimizer=OuterLamb())
    rule = DataParallel(optimizer=OuterLamb()).shaped([(2, 3)])
    assert rule.init(np.zeros(5, np.float32)).optimizer["ends"].tolist() == [2]


# ---- what does not go together -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"auxiliary": -1}, "auxiliary is -1"),
        ({"auxiliary": 1, "allreduce": RingAllReduce()}, "allreduce=load_balanced"),
        ({"buckets": Buckets()}, "buckets is"),
        ({"weighted_by_key": "num-examples"}, "weighted_by_key is num-examples"),
        ({"compress_mean": True}, "compress_mean is true"),
        ({"workers": 2, "stragglers": Stragglers()}, "stragglers is"),
        ({"drop": 0.1}, "drop is 0.1"),
    ],
)
def test_what_does_not_go_with_gathered_batches_is_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        Collaboration(DeDLOC(), **{"allreduce": LoadBalancedAllReduce(), **more})


def test_auxiliary_peers_are_refused_where_vectors_are_gathered():
    with pytest.raises(ConfigError, match="auxiliary is 1, but what TopK needs"):
        driven(
            DeDLOC(), workers=2, strategy=Collaboration, auxiliary=1, compressor=TopK(density=0.1)
        )


def test_rules_of_another_kind_and_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="DeDLOC"):
        Collaboration(DataParallel())
    with pytest.raises(ConfigError, match="target_batch is 0"):
        DeDLOC(target_batch=0)
    with pytest.raises(ConfigError, match="delayed is 1"):
        DeDLOC(delayed=1)
    strategy = Collaboration(DeDLOC(), auxiliary=4, allreduce=LoadBalancedAllReduce())
    with pytest.raises(ConfigError, match="somebody must train"):
        strategy.check_clients(4)
    assert math.isinf(Report(1, 0.0, 0.0).most)
