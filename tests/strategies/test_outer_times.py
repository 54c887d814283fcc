"""Virtual time of outer steps: phases, all-reduces and waiting, worked out by hand.

A step of 32 examples takes 1 s, or as long as given. Payloads go around a ring of two: twice a
latency of 2 x 0.125 s and half a payload.
"""

from __future__ import annotations

import pytest
from islands import CUT, DATA, LAYOUT, MODEL, SGD, app_of, crashing, driven, of, run
from stand_ins import Client, ScriptedFaults, fleet_of

from fl.clients import Gradient
from fl.compression import Cast
from fl.models import flops_per_example
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import TaskFaults
from fl.strategies import (
    CO2,
    DataParallel,
    DelayedUpdates,
    DiLoCo,
    EagerUpdates,
    OverlapLocalSGD,
    StreamingDiLoCo,
)

STEP_FLOPS = 32 * flops_per_example(MODEL(), (1, 8, 8)).training
D = LAYOUT.size


def islands(bps, step_s=(1.0, 1.0), faults=None):
    return fleet_of(
        [Client(flops=STEP_FLOPS / s, up_bps=bps, down_bps=bps, latency_s=0.125) for s in step_s],
        faults=faults,
    )


def ring_s(entries, bps):
    """An all-reduce of float32 between two."""
    return 2 * (0.25 + 8 * (4 * entries / 2) / bps)


def timed(strategy, rounds, fleet, **app):
    got = run(strategy, rounds, fleet=fleet, batch_size=32, **app)
    return got.times, got.summary["totals"]["utilisation"]


def test_diloco_waits_for_every_all_reduce():
    bps = 32 * D  # 0.5 s for half of a payload
    times, utilisation = timed(DiLoCo(inner_steps=4), 3, islands(bps))
    assert ring_s(D, bps) == 1.5
    assert times == pytest.approx([0.0, 5.5, 11.0, 16.5])
    assert utilisation == pytest.approx(4 / 5.5)


def test_the_slowest_worker_sets_the_pace():
    bps = 32 * D
    times, utilisation = timed(DiLoCo(inner_steps=4), 2, islands(bps, (1.0, 1.5)))
    assert times == pytest.approx([0.0, 7.5, 15.0])
    assert utilisation == pytest.approx((4 + 6) / (2 * 7.5))


def test_those_who_come_later_than_the_first_waits_are_left_out_and_enter_again():
    fleet = islands(32 * D, (1.0, 1.5))  # 4 s and 6 s a phase
    waiting = driven(DiLoCo(inner_steps=4), waiting_s=1.0)
    got = run(waiting, 4, fleet=fleet, batch_size=32)
    # At 9 s worker 1, whose first phase was in vain, fetches model and momentum, and is late again.
    assert got.times == pytest.approx([0.0, 5.0, 9.0, 14.0, 18.0])
    assert [m["islands"] for m in got.result.train_metrics_clientapp.values()] == [0, 1, 1, 1, 1]
    assert [r["time_s"] for r in of(got.run.trace, Event.DISCARDED)] == pytest.approx([6.0, 17.25])
    patient = driven(DiLoCo(inner_steps=4), waiting_s=2.5)
    got = run(patient, 2, fleet=islands(32 * D, (1.0, 1.5)), batch_size=32)
    assert got.times == pytest.approx([0.0, 7.5, 15.0])


def test_workers_slower_than_the_timeout_take_part():
    fleet = islands(32 * D, (100.0, 150.0))
    got = run(DiLoCo(inner_steps=4), 2, fleet=fleet, batch_size=32, timeout=120.0)
    assert got.times == pytest.approx([0.0, 601.5, 1203.0])
    assert [m["islands"] for m in got.result.train_metrics_clientapp.values()][1:] == [2, 2]


def test_a_worker_that_falls_silent_is_left_out_when_it_is_late_and_asked_again_when_it_is_lost():
    # Worker 1 drops out of its second segment, which begins at 5.5 s, and nobody hears of it. Its
    # first took 4 s: it is late 5 x 4 s later, and has lost the segment after 3 times that.
    faults = ScriptedFaults(script={(1, 1): TaskFaults(dropout_at=0.5)})
    got = run(DiLoCo(inner_steps=4), 26, fleet=islands(32 * D, faults=faults), batch_size=32)
    assert got.times[2] == pytest.approx(5.5 + 20.0)
    islands_in = [m["islands"] for m in got.result.train_metrics_clientapp.values()]
    alone = [time for time, n in zip(got.times, islands_in, strict=True) if n == 1]
    # Alone it takes 4 s a round, and worker 1 enters with the next one after 5.5 + 60 s.
    assert alone == pytest.approx([25.5 + 4.0 * k for k in range(len(alone))])
    assert alone[-1] <= 65.5 + 2 * 4.0
    assert islands_in[-1] == 2


def test_a_worker_that_comes_late_enters_again_with_what_the_others_have():
    # Its second segment takes 28 s instead of 4 s: the others go on after 20 s.
    class Spell:
        def slowdown(self, seed, client, dispatch):
            return 7.0 if (client, dispatch) == (1, 1) else 1.0

    fleet = islands(32 * D, faults=ScriptedFaults(slowdown=Spell()))
    got = run(DiLoCo(inner_steps=4), 20, fleet=fleet, batch_size=32)
    assert got.times[2] == pytest.approx(25.5)
    (late,) = of(got.run.trace, Event.DISCARDED)
    assert (late["client"], late["time_s"]) == (1, pytest.approx(33.5))
    islands_in = [m["islands"] for m in got.result.train_metrics_clientapp.values()]
    both = [time for time, n in zip(got.times, islands_in, strict=True) if n == 2]
    # It fetches the outer parameters (0.25 s and 1 s), and both are done 5.5 s later.
    assert both[2] <= 33.5 + 2 * 4.0 + 1.25 + 5.5
    assert islands_in[-1] == 2


def test_data_parallel_training_waits_in_every_step():
    bps = 32 * D
    times, utilisation = timed(DataParallel(), 4, islands(bps), rule=Gradient())
    assert times == pytest.approx([0.0, 2.5, 5.0, 7.5, 10.0])
    assert utilisation == pytest.approx(1 / 2.5)


@pytest.mark.parametrize("tau", [0, 1, 2, 3])
@pytest.mark.parametrize("bps", [8 * D, 32 * D, 1e12], ids=["slow", "middling", "fast"])
def test_streaming_waits_for_what_of_an_all_reduce_its_overlap_does_not_hide(bps, tau):
    h, rounds = 6, 3
    strategy = StreamingDiLoCo(inner_steps=h, fragments=3, overlap=tau, mixing=0.5)
    times, utilisation = timed(strategy, rounds, islands(bps))

    now, busy_until, finish, expected = 0.0, 0.0, {}, [0.0]
    for step in range(1, h * rounds + 1):
        now += 1.0
        for p in range(3):
            due = step - (2 * p or h)
            if due >= 0 and due % h == 0:
                # The ring takes one payload at a time.
                busy_until = max(now, busy_until) + ring_s(CUT.shapes[p].size, bps)
                finish[p] = busy_until
                if p == 0:
                    expected.append(busy_until)
        for p in range(3):
            if due_to_merge(step, p, h, tau):
                now = max(now, finish[p])
    assert times == pytest.approx(expected)
    assert utilisation == pytest.approx(h * rounds / expected[-1])
    if bps == 1e12 and tau:
        assert times[1:] == pytest.approx([6.5, 12.5, 18.5], abs=1e-3)  # two latencies, at the end


def due_to_merge(step, p, h, tau):
    due = step - tau - (2 * p or h)
    return due >= 0 and due % h == 0


@pytest.mark.parametrize("kind", [EagerUpdates, DelayedUpdates, CO2, OverlapLocalSGD])
@pytest.mark.parametrize("ring", [0.75, 4.0, 4.5])
def test_nobody_waits_while_an_all_reduce_fits_into_a_phase(kind, ring):
    bps = 32 * D / (ring - 0.5)
    assert ring_s(D, bps) == pytest.approx(ring)
    strategy = kind(inner_steps=4)
    got = run(strategy, 4, fleet=islands(bps), batch_size=32)
    ends = sorted({row["time_s"] for row in of(got.run.trace, Event.COMPUTE_END)})
    waited = max(0.0, ring - 4.0)  # in every phase but the first two, for the one before
    assert ends == pytest.approx([4.0, 8.0, 12.0 + waited, 16.0 + 2 * waited])
    # The last outer step has the last phase's all-reduce in it.
    assert got.times[-1] == pytest.approx(max(16.0 + 2 * waited, 4.0 + 3 * ring) + ring)


@pytest.mark.parametrize(
    ("inner_steps", "ratio"), [pytest.param(48, 1.0, marks=pytest.mark.slow), (12, 0.971)]
)
def test_co2s_scaling_at_80_gbits_follows_from_the_speeds_of_two_methods(inner_steps, ratio):
    # Second-hand: words a second of 128 GPUs at 80 Gbit/s, of CO2 with H = 48 and of data-parallel
    # training. So an all-reduce takes 12.4 steps: H = 48 hides it, and H = 12 all but a third of a
    # step, where the paper has 0.86 of the speed of 16 GPUs, and 1.06 with 48.
    step_s = 1.0
    reduction_s = step_s * (304_736 / 22_810 - 1)
    bps = 32 * D / (reduction_s - 0.5)
    assert ring_s(D, bps) == pytest.approx(reduction_s)
    clients = islands(bps), islands(1e18)
    runs = [run(CO2(inner_steps=inner_steps), 3, fleet=fleet, batch_size=32) for fleet in clients]
    ends = [sorted({r["time_s"] for r in of(g.run.trace, Event.COMPUTE_END)}) for g in runs]
    assert (ends[1][2] - ends[1][1]) / (ends[0][2] - ends[0][1]) == pytest.approx(ratio, abs=2e-3)


def test_a_quantised_all_reduce_takes_as_long_as_its_bytes():
    bps = 32 * D
    times, _ = timed(DiLoCo(inner_steps=4), 2, islands(bps), compressor=Cast("e3m0"))
    payload = 6 + 4 * 6 + -(-D // 2)
    assert times[1] == pytest.approx(4 + 2 * (0.25 + 8 * (payload / 2) / bps))


def test_a_worker_that_comes_back_fetches_the_model_before_it_goes_on():
    fleet = crashing((0, 1))
    got = run(DiLoCo(inner_steps=2), 3, fleet=fleet)
    (transfer,) = of(got.run.trace, Event.TRANSFER)
    starts = [r["time_s"] for r in of(got.run.trace, Event.COMPUTE_START) if r["client"] == 0]
    assert transfer["time_s"] == starts[2]  # the third task, the second having crashed
    assert transfer["time_s"] - got.times[2] == pytest.approx(8 * 8 * D / 10e6)  # and momentum


def test_no_data_or_step_is_lost_in_the_hand_over():
    strategy = StreamingDiLoCo(inner_steps=6, fragments=3, overlap=1)
    app = app_of(strategy, DATA[2], SGD, batch_size=32)
    assert app.local_steps == 1
    got = run(strategy, 2, batch_size=32)
    seconds = [r["value"] for r in of(got.run.trace, Event.COMPUTE_START) if r["client"] == 0]
    # 12 steps in all, in segments from 0 to 2, 3, ... and 12, of 1e9 FLOP/s.
    step_s = STEP_FLOPS / 1e9
    assert [s / step_s for s in seconds] == pytest.approx([2, *[1] * 10])
