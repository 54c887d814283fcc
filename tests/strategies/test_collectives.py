"""Outer steps by collectives of every kind: what workers get, when, and after a failure."""

from __future__ import annotations

import numpy as np
import pytest
from islands import LAYOUT, MODEL, PLAIN, SGD, Nesterov, driven, of, references, run
from stand_ins import Client, Scripted, fleet_of

from fl.aggregation import Median
from fl.attacks import IPM
from fl.clients import Gradient
from fl.collectives import Buckets, Butterfly, Failure, Int8Ring, RingAllReduce, TreeAllReduce
from fl.compression import Cast, PowerSgd, Shapes, TopK
from fl.errors import ConfigError
from fl.models import flops_per_example
from fl.simulation.kernel.trace import Event
from fl.strategies import (
    DataParallel,
    DiLoCo,
    EagerUpdates,
    LocalSGD,
    OuterSgd,
    StreamingDiLoCo,
)
from fl.strategies.per_worker_rule import PerWorkerRule

D = LAYOUT.size
STEP_FLOPS = 32 * flops_per_example(MODEL(), (1, 8, 8)).training
RULE = DiLoCo(inner_steps=2, optimizer=PLAIN)
BPS = 8 * D  # 4 s for a payload
DETECTION_S = 10.0


def islands(m, toggles=None, bps=BPS, step_s=1.0):
    """M workers, of which some leave, and come back, at given times."""
    clients = [Client(flops=STEP_FLOPS / step_s, up_bps=bps, down_bps=bps, latency_s=0.125)] * m
    return fleet_of(clients, availability=Scripted(m, toggles or {}))


def deltas(theta, workers, steps=2):
    rows = []
    for worker in workers:
        worker.w = theta
        worker.train(steps)
        rows.append(theta - worker.w)
    return np.array(rows)


def trained(fleet, rounds=2, workers=3, rule=RULE, **of_driver):
    strategy = driven(rule, workers=workers, **of_driver)
    return run(strategy, rounds, workers=workers, fleet=fleet)


# A phase of two steps takes as long as the data of a worker do; from its end T on, a ring of three
# takes 4 hops of 0.25 s and 4 / 3 s.
HOP_S = 0.25 + 4 / 3
PHASE_S, OF_FOUR_S = (
    trained(islands(m, bps=1e18), rounds=1, workers=m).times[1] - 2 * (m - 1) * 0.25 for m in (3, 4)
)


@pytest.mark.parametrize("hops", [0.5, 1.5, 3.9])
def test_survivors_try_again_and_get_the_mean_of_what_they_have(hops):
    leaves = PHASE_S + hops * HOP_S
    got = trained(islands(3, {2: [leaves]}), on_failure="retry", detection_s=DETECTION_S)
    workers = references(3, SGD)
    theta = workers[0].w
    delta = deltas(theta, workers[:2]).mean(axis=0)
    np.testing.assert_allclose(got.rows[1], theta - 0.5 * delta, atol=3e-6)
    assert got.times[1] == pytest.approx(leaves + DETECTION_S + 2 * (0.25 + 2.0))
    failed = of(got.run.trace, Event.ALL_REDUCE_FAILED)
    assert [row["client"] for row in failed] == [0, 1, 2]
    chunks = int(hops) + 1  # what has begun is sent
    assert [row["bytes"] for row in failed] == [-(-chunks * 4 * D // 3)] * 3
    done = [row for row in of(got.run.trace, Event.ALL_REDUCE) if row["time_s"] == got.times[1]]
    assert [(row["client"], row["bytes"]) for row in done] == [(0, 4 * D), (1, 4 * D)]
    assert got.result.train_metrics_clientapp[2]["islands"] == 2
    assert got.summary["faults"]["all_reduce_failed"] == 3


def test_a_step_that_not_all_vote_for_is_not_taken():
    leaves = PHASE_S + HOP_S
    got = trained(islands(3, {2: [leaves]}), on_failure="discard", detection_s=DETECTION_S)
    np.testing.assert_array_equal(got.rows[1], got.rows[0])
    assert got.times[1] == pytest.approx(leaves + DETECTION_S)
    assert got.run.trace.counts[Event.NO_STEP] == 1
    assert not np.array_equal(got.rows[2], got.rows[1])
    # The next is of two, with a vote: there and back, 0.25 s each.
    assert got.times[2] == pytest.approx(got.times[1] + PHASE_S + 2 * (0.25 + 2.0) + 0.5)


def test_an_eager_worker_takes_its_own_step_before_the_all_reduce_fails():
    rule = EagerUpdates(inner_steps=2, optimizer=PLAIN)
    leaves = PHASE_S + HOP_S
    fails, goes_on = (
        trained(islands(3, toggles), rounds=1, rule=rule, on_failure="discard")
        for toggles in ({2: [leaves]}, {})
    )
    assert fails.run.trace.counts[Event.NO_STEP] == 1
    assert not np.array_equal(fails.rows[1], fails.rows[0])
    assert not np.array_equal(fails.rows[1], goes_on.rows[1])


def test_without_a_mode_it_has_done_its_part_before():
    leaves = PHASE_S + HOP_S
    got = trained(islands(3, {2: [leaves]}), rounds=1)
    still = trained(islands(3), rounds=1)
    np.testing.assert_array_equal(got.rows[1], still.rows[1])
    assert got.times[1] == still.times[1]


def test_after_the_last_retry_there_is_no_step():
    first = OF_FOUR_S + 1.0
    second = first + DETECTION_S + 0.5
    fleet = islands(4, {2: [first], 3: [second]})
    got = trained(fleet, workers=4, on_failure="retry", detection_s=DETECTION_S, retries=1)
    np.testing.assert_array_equal(got.rows[1], got.rows[0])
    assert got.times[1] == pytest.approx(second + DETECTION_S)
    again = trained(fleet, workers=4, on_failure="retry", detection_s=DETECTION_S, retries=2)
    assert not np.array_equal(again.rows[1], again.rows[0])


def parted(rounds, rule=RULE, joins=(), **of_driver):
    """Three workers, of which the last leaves in the first all-reduce, which is not tried again."""
    leaves = PHASE_S + HOP_S
    fleet = islands(3, {2: [leaves, *joins]})
    how = {"on_failure": "alone", "detection_s": DETECTION_S, "retries": 0, **of_driver}
    return leaves, trained(fleet, rounds=rounds, rule=rule, **how)


def test_after_the_last_retry_each_goes_on_by_its_own_outer_gradient_and_they_stay_apart():
    nesterov = OuterSgd(lr=0.5, momentum=0.9, nesterov=True)
    leaves, got = parted(3, rule=DiLoCo(inner_steps=2, optimizer=nesterov))
    assert got.times[1] == pytest.approx(leaves + DETECTION_S)
    assert got.run.trace.counts[Event.NO_STEP] == 0
    workers = references(3, SGD)[:2]
    outer = [Nesterov(workers[0].w, nesterov) for _ in workers]

    def moved():
        rows = np.stack([deltas(o.theta, [w])[0] for o, w in zip(outer, workers, strict=True)])
        return rows

    for theta, delta in zip(outer, moved(), strict=True):
        theta.step(delta)
    models = [np.mean([o.theta for o in outer], axis=0)]
    apart = np.abs(outer[0].theta - outer[1].theta).max()
    for _ in range(2):
        mean = moved().mean(axis=0)
        for theta in outer:
            theta.step(mean)
        models.append(np.mean([o.theta for o in outer], axis=0))
    assert apart > 1e-3
    assert np.abs(outer[0].theta - outer[1].theta).max() > apart  # by momentum, even more so
    np.testing.assert_allclose(got.rows[1:], models, atol=3e-6)


def test_who_enters_among_parted_workers_has_the_model_of_the_first():
    _, got = parted(12, joins=[PHASE_S + HOP_S + 30.0])
    assert [m["islands"] for m in got.result.train_metrics_clientapp.values()][-1] == 3
    apart = PerWorkerRule(RULE)
    s = apart.alone(apart.init(np.zeros(2, np.float32)), {3: np.ones(2), 5: -np.ones(2)})
    assert [apart.theta(s, m).tolist() for m in (3, 5)] == [[-0.5, -0.5], [0.5, 0.5]]
    assert apart.model(s, [3, 5]).tolist() == [0.0, 0.0]
    s = apart.entered(s, 4, [3, 5])
    assert apart.theta(s, 4).tolist() == [-0.5, -0.5]
    assert apart.theta(apart.entered(s, 7, []), 9).tolist() == [-0.5, -0.5]  # when all had left


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("rule", {"rule": EagerUpdates(inner_steps=2)}),
        ("rule", {"rule": DataParallel()}),
        ("aggregator", {"aggregator": Median()}),
        ("drop", {"drop": 0.5}),
        ("compressor", {"compressor": Cast("bf16")}),
    ],
)
def test_who_may_go_on_alone_has_a_whole_outer_gradient_that_all_wait_for(key, more):
    given = {"rule": RULE, **more}
    with pytest.raises(ConfigError, match=f"on_failure is .*{key} is"):
        driven(given.pop("rule"), on_failure="alone", **given)


def test_a_silence_is_noticed_so_long_after_the_last_heartbeat():
    failure = Failure("retry", detection_s=10.0, heartbeat_s=2.0)
    # Heartbeats at 0.5, 2.5, 4.5, ...; whoever leaves at 4.0 has sent its last one at 2.5.
    assert failure.noticed_s(4.0, 0.25) == 12.5
    assert failure.noticed_s(4.5, 0.25) == 14.5
    times = [failure.noticed_s(t, 0.7) - t for t in np.linspace(20, 22, 41)]
    assert min(times) > 8.0
    assert max(times) == pytest.approx(10.0)
    leaves = PHASE_S + 1.5 * HOP_S
    got = trained(
        islands(3, {2: [leaves]}), 1, on_failure="retry", detection_s=DETECTION_S, heartbeat_s=2.0
    )
    noticed = got.times[1] - 2 * (0.25 + 2.0)
    assert leaves + 8.0 < noticed < leaves + 10.0
    with pytest.raises(ConfigError, match=r"heartbeat_s is 2.0, and detection_s 1.0"):
        driven(RULE, on_failure="retry", detection_s=1.0, heartbeat_s=2.0)


def test_a_worker_that_is_back_takes_part_again():
    leaves = PHASE_S + HOP_S
    fleet = islands(3, {2: [leaves, leaves + 20.0]})
    got = trained(fleet, rounds=12, on_failure="retry", detection_s=DETECTION_S)
    counts = [m["islands"] for m in got.result.train_metrics_clientapp.values()]
    assert counts[2] == 2
    assert counts[-1] == 3


@pytest.mark.parametrize("mode", ["retry", "discard"])
def test_fragments_in_flight_survive_a_failure(mode):
    rule = StreamingDiLoCo(inner_steps=6, fragments=3, overlap=1, optimizer=PLAIN)
    got = trained(
        islands(3, {1: [2.7]}), rounds=3, rule=rule, on_failure=mode, detection_s=DETECTION_S
    )
    assert got.summary["status"] == "completed"
    assert np.isfinite(got.rows).all()
    assert not np.array_equal(got.rows[-1], got.rows[0])


@pytest.mark.parametrize("collective", [TreeAllReduce(), Butterfly()], ids=str)
def test_a_collective_changes_times_and_not_what_workers_get(collective):
    ring, other = (
        run(driven(RULE, workers=3, allreduce=c), 2, workers=3, fleet=islands(3))
        for c in (RingAllReduce(), collective)
    )
    np.testing.assert_array_equal(ring.rows, other.rows)
    assert other.times[1] == pytest.approx(PHASE_S + 4 * (0.25 + 4.0), rel=0.3)
    assert other.times[1] != ring.times[1]


def test_workers_get_the_requantised_mean_of_their_outer_gradients():
    workers, m = references(4, SGD), 4
    got = run(driven(RULE, workers=m, allreduce=Int8Ring()), 1, workers=m, fleet=islands(m))
    theta = workers[0].w
    x = deltas(theta, workers)
    mean = Int8Ring().reduced(x.astype(np.float32))
    np.testing.assert_allclose(got.rows[1], theta - 0.5 * mean, atol=2e-6)
    assert np.abs(mean - x.mean(axis=0)).max() > 1e-5
    chunks = Int8Ring().chunks(m, 4 * D)
    seconds = OF_FOUR_S + 2 * (m - 1) * (0.25 + 8 * chunks.max() / BPS)
    assert got.times[1] == pytest.approx(seconds)


def test_a_liars_vector_is_requantised_with_the_others():
    strategy = driven(RULE, workers=3, attack=IPM(epsilon=2.0), byzantine=[1], allreduce=Int8Ring())
    got = run(strategy, 1, workers=3)
    workers = references(3, SGD)
    theta = workers[0].w
    x = deltas(theta, workers)
    x[1] = -2.0 * (x[0] + x[2]) / 2
    expected = theta - 0.5 * Int8Ring().reduced(x.astype(np.float32))
    np.testing.assert_allclose(got.rows[1], expected, atol=2e-4)


@pytest.mark.parametrize(("all_reduce_s", "utilisation"), [(103, 95.7), (382, 85.6), (469, 83.0)])
def test_intellect_1s_utilisation_follows_from_its_phase_and_its_all_reduces(
    all_reduce_s, utilisation
):
    # Table 2 of arXiv:2412.01152, second-hand: phases of 38 min, median all-reduces as given.
    m, phase_s = 4, 2280.0
    bps = 8 * 2 * (m - 1) * Int8Ring().chunks(m, 4 * D).max() / all_reduce_s
    clients = [Client(flops=2 * STEP_FLOPS / phase_s, up_bps=bps, down_bps=bps)] * m
    strategy = driven(LocalSGD(inner_steps=2), workers=m, allreduce=Int8Ring())
    got = run(strategy, 2, workers=m, fleet=fleet_of(clients), batch_size=32)
    assert got.times[1] == pytest.approx(phase_s + all_reduce_s)
    assert 100 * got.summary["totals"]["utilisation"] == pytest.approx(utilisation, abs=0.1)


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("aggregator", {"aggregator": Median()}),
        ("weighted_by_key", {"weighted_by_key": "num-examples"}),
        ("rule", {"rule": EagerUpdates(inner_steps=2)}),
        ("compressor", {"compressor": Cast("bf16")}),
    ],
)
def test_what_cannot_be_requantised_on_its_way_is_refused(key, more):
    given = {"rule": LocalSGD(inner_steps=2), **more}
    with pytest.raises(ConfigError, match=f"allreduce is Int8Ring.*{key} is"):
        driven(given.pop("rule"), allreduce=Int8Ring(), **given)


@pytest.mark.parametrize(
    "more", [{"compressor": TopK(density=0.1)}, {"aggregator": Median()}], ids=["topk", "median"]
)
def test_a_collective_for_what_is_gathered_is_refused(more):
    with pytest.raises(ConfigError, match="allreduce is TreeAllReduce"):
        driven(RULE, allreduce=TreeAllReduce(), **more)
    driven(RULE, **more)


@pytest.mark.parametrize(
    ("key", "value"),
    [("on_failure", "hope"), ("detection_s", -1.0), ("retries", -1)],
)
def test_a_failure_mode_out_of_range_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value!r}"):
        driven(RULE, **{"on_failure": "retry", key: value})


@pytest.mark.parametrize("more", [{"allreduce": Int8Ring()}, {"on_failure": "retry"}])
def test_a_compressed_mean_goes_with_no_other_encoding_and_no_failures(more):
    with pytest.raises(ConfigError, match=f"compress_mean is true.*{next(iter(more))} is"):
        driven(RULE, compressor=PowerSgd(), compress_mean=True, **more)


# ---- data-parallel training ----------------------------------------------------------------------


def parallel(rounds=3, bps=32 * D, batch_size=32, **of_driver):
    strategy = driven(DataParallel(optimizer=PLAIN), workers=2, **of_driver)
    fleet = islands(2, bps=bps)
    return run(strategy, rounds, rule=Gradient(), fleet=fleet, batch_size=batch_size)


def test_buckets_hide_all_but_the_end_of_an_all_reduce_and_change_no_gradient():
    # A step of 1 s, of which the last 2/3 are the backward pass; 32 bits a number in 32 D bit/s.
    per_tensor = Buckets(mib=1e-9, first_mib=None)
    plain, bucketed = parallel(), parallel(buckets=per_tensor)
    np.testing.assert_array_equal(plain.rows, bucketed.rows)
    sizes = Shapes.trained(LAYOUT).sizes
    now = 0.0
    for step in range(3):
        f, left = 0.0, D
        now += 1.0
        for size in reversed(sizes):
            left -= size
            c = 2 * (0.25 + 8 * (4 * size / 2) / (32 * D))
            f = max(now - left / D * 2 / 3, f) + c
        now = max(now, f)
        assert bucketed.times[step + 1] == pytest.approx(now)
    one = parallel(buckets=Buckets())
    assert one.times == pytest.approx(
        plain.times
    )  # a tiny model is one bucket, and nothing overlaps
    sent = [sum(r["bytes"] for r in of(got.run.trace, Event.ALL_REDUCE)) for got in (plain, one)]
    assert sent[0] == sent[1] == 3 * 2 * 4 * D


def test_micro_batches_are_one_batch_and_one_all_reduce():
    one, four = (parallel(batch_size=b, accumulate=k) for b, k in ((32, 1), (8, 4)))
    np.testing.assert_allclose(one.rows, four.rows, atol=2e-6)
    assert four.times == pytest.approx(one.times)
    few = parallel(rounds=1, batch_size=8, accumulate=4)
    many = parallel(rounds=4, batch_size=8)
    sent = [sum(r["bytes"] for r in of(got.run.trace, Event.ALL_REDUCE)) for got in (few, many)]
    assert 4 * sent[0] == sent[1]


@pytest.mark.parametrize(
    "more",
    [
        {"allreduce": Int8Ring()},
        {"on_failure": "retry"},
        {"compress_mean": True, "compressor": PowerSgd()},
        {"rule": LocalSGD(inner_steps=2)},
        {"aggregator": Median()},
        {"compressor": TopK(density=0.1)},
    ],
)
def test_buckets_are_of_gradients_that_nobody_needs_whole(more):
    given = {"rule": DataParallel(), **more}
    with pytest.raises(ConfigError, match=rf"({next(iter(more))}|buckets) is"):
        driven(given.pop("rule"), buckets=Buckets(), **given)
