"""Checkpoints: when they stall a job, what failures cost, and the best interval."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.checkpoint_interval import daly, exact, expected_s, young
from fl.simulation.world.checkpointing import Checkpointing, JobTime

GB = 1e9
BLOCKING = Checkpointing(
    interval_s=600.0, state_bytes=20 * GB, host_bandwidth=10 * GB, storage_bandwidth=GB / 3
)  # a checkpoint stalls for 60 s
ASYNCHRONOUS = replace(BLOCKING, buffer_bytes=40 * GB)  # for 2 s
LAZY = replace(ASYNCHRONOUS, overlap_s=1.5)  # for 0.5 s


class Failing(JobTime):
    """Fails so many s after it began, and so many after each failure; then no more."""

    def __init__(self, by, gaps):
        self.gaps = iter(gaps)
        super().__init__(replace(by, mtbf_s=1e9, restart_s=100.0), seed=0)

    def _gap(self):
        return next(self.gaps, math.inf)


# ---- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("c", "m", "of_young", "of_daly", "of_exact"),
    [
        (60, 3600, (657.27, 1.207596), (617.876, 1.207199), (617.8906, 1.207199)),
        (60, 86400, (3219.94, 1.038216), (3180.062, 1.038213), (3180.0627, 1.038213)),
        (300, 3600, (1469.69, 1.555181), (1276.498, 1.549638), (1276.8766, 1.549638)),
        (600, 86400, (10182.34, 1.127837), (9786.266, 1.127736), (9786.3282, 1.127736)),
    ],
)
def test_intervals_and_what_a_job_takes_with_them(c, m, of_young, of_daly, of_exact):
    for interval, (tau, takes) in ((young, of_young), (daly, of_daly), (exact, of_exact)):
        assert interval(c, m) == pytest.approx(tau, rel=1e-5)
        assert expected_s(tau, c, 0, m) / tau == pytest.approx(takes, rel=1e-6)
        assert interval(7 * c, 7 * m) == pytest.approx(7 * interval(c, m))


def test_the_exact_interval_is_where_the_expected_time_is_least():
    taus = np.linspace(1000, 1600, 6001)
    takes = [expected_s(tau, 300, 120, 3600) / tau for tau in taus]
    assert taus[int(np.argmin(takes))] == pytest.approx(exact(300, 3600), abs=0.1)


def test_a_checkpoint_that_takes_two_mean_times_is_written_once_in_one():
    assert daly(7200.0, 3600.0) == 3600.0


# ---- without failures ----------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "stall_s"), [(BLOCKING, 60.0), (ASYNCHRONOUS, 2.0), (LAZY, 0.5)])
def test_a_checkpoint_stalls_the_job_for_what_it_does_not_hide(by, stall_s):
    job = JobTime(by, seed=0)
    assert job.elapsed(600.0) == 600.0
    assert job.elapsed(602.0) == pytest.approx(602.0 + stall_s)
    assert job.elapsed(6006.0) == pytest.approx(6006.0 + 10 * stall_s)
    report = job.report(6006.0)
    assert report["checkpoints"] == 10
    assert report["stalled_s"] == pytest.approx(10 * stall_s)
    assert report["failures"] == report["lost_s"] == report["restarting_s"] == 0


def test_a_lazy_copy_stalls_where_the_parameters_would_be_updated():
    job = JobTime(LAZY, seed=0)
    assert job.elapsed(601.5) == 601.5
    assert job.elapsed(601.6) == pytest.approx(602.1)
    assert JobTime(replace(LAZY, overlap_s=3.0), seed=0).elapsed(1000.0) == 1000.0


@pytest.mark.parametrize("buffer_bytes", [5 * GB, 40 * GB])
def test_checkpoints_too_often_for_the_storage_come_at_its_pace(buffer_bytes):
    by = replace(LAZY, interval_s=4.0, buffer_bytes=buffer_bytes)
    job = JobTime(by, seed=0)
    job.elapsed(4000.0)
    assert (job.elapsed(4000.0) - job.elapsed(3600.0)) / 100 == pytest.approx(60.0)


def test_a_full_buffer_makes_room_as_it_is_flushed():
    # Full after 8 GB / (10 - 2) GB/s = 1 s, with 10 GB copied; the others at 2 GB/s.
    by = replace(ASYNCHRONOUS, storage_bandwidth=2 * GB, buffer_bytes=8 * GB)
    assert by.copied(0.0, 0.0) == pytest.approx((6.0, 10.0))
    # With 4 GB in it, after 0.5 s.
    assert by.copied(0.0, 2.0) == pytest.approx((0.5 + 7.5, 12.0))
    assert by.copied(3.0, 0.0) == pytest.approx((9.0, 13.0))


def test_larger_states_never_stall_for_less():
    ends = [
        JobTime(replace(LAZY, state_bytes=s * GB, interval_s=30.0), seed=0).elapsed(900.0)
        for s in range(0, 80, 5)
    ]
    assert ends == sorted(ends)
    assert ends[0] == 900.0


# ---- failures ------------------------------------------------------------------------------------


def test_work_since_the_last_checkpoint_is_done_over():
    job = Failing(BLOCKING, [1000.0])  # at 940, of which 600 are safe
    assert job.elapsed(940.0) == 1000.0
    assert job.elapsed(941.0) == pytest.approx(1000.0 + 100.0 + 340.0 + 1.0)
    report = job.report(941.0)
    assert (report["failures"], report["checkpoints"]) == (1, 1)
    costs = [report[name] for name in ("stalled_s", "lost_s", "restarting_s")]
    assert costs == pytest.approx([60.0, 340.0, 100.0])


def test_a_failure_while_a_checkpoint_is_written_goes_back_to_the_one_before():
    job = Failing(BLOCKING, [630.0])
    assert job.elapsed(601.0) == pytest.approx(630.0 + 100.0 + 600.0 + 60.0 + 1.0)
    assert job.report(601.0)["checkpoints"] == 2


@pytest.mark.parametrize(("fails", "safe"), [(659.0, 0.0), (661.0, 600.0)])
def test_what_was_not_flushed_is_lost(fails, safe):
    job = Failing(ASYNCHRONOUS, [fails])  # copied at 602, flushed at 660
    report = job.report(700.0)
    assert report["lost_s"] == pytest.approx(fails - 2.0 - safe)


def test_a_failure_during_a_restart_begins_it_again():
    job = Failing(BLOCKING, [50.0, 70.0])
    assert job.elapsed(51.0) == pytest.approx(50.0 + 70.0 + 100.0 + 51.0)
    assert job.report(51.0)["failures"] == 2


@pytest.mark.parametrize("by", [BLOCKING, ASYNCHRONOUS, LAZY])
def test_what_a_job_takes_is_its_work_and_what_was_reported(by):
    job = JobTime(replace(by, mtbf_s=1800.0), seed=3)
    for job_s in (100.0, 700.3, 12345.6, 1e5):
        report = job.report(job_s)
        costs = sum(report[name] for name in ("stalled_s", "lost_s", "restarting_s"))
        assert job.elapsed(job_s) == pytest.approx(job_s + costs)
    assert report["failures"] > 20


def test_the_mean_time_of_a_segment_is_the_expected_one():
    segments, by = 20_000, replace(BLOCKING, restart_s=120.0, mtbf_s=3600.0)
    mean = JobTime(by, seed=0).elapsed(600.0 * segments) / segments
    assert expected_s(600, 60, 120, 3600) == pytest.approx(748.926, abs=5e-4)
    assert mean == pytest.approx(748.926, rel=0.005)  # four standard errors


def test_the_best_interval_of_jobs_is_the_exact_one():
    c, m, work = 300.0, 3600.0, 3000 * 3600.0
    off = np.linspace(-0.6, 0.6, 7)  # logarithms
    takes = []
    for interval_s in exact(c, m) * np.exp(off):
        by = replace(BLOCKING, interval_s=float(interval_s), state_bytes=c * GB / 3, mtbf_s=m)
        takes.append(JobTime(by, seed=0).elapsed(work))
    minima = np.roots(np.polyder(np.polyfit(off, takes, 3)))
    assert math.exp(minima[np.argmin(np.abs(minima))]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("interval_s", [20.0, 100.0, 600.0, 3000.0])
@pytest.mark.parametrize("seed", range(3))
def test_asynchronous_checkpoints_are_never_slower(interval_s, seed):
    ends = [
        JobTime(replace(by, interval_s=interval_s, mtbf_s=3600.0), seed).elapsed(6e4)
        for by in (LAZY, ASYNCHRONOUS, BLOCKING)
    ]
    assert ends == sorted(ends)
    without = [
        JobTime(replace(by, interval_s=interval_s), seed).elapsed(6e4)
        for by in (LAZY, ASYNCHRONOUS, BLOCKING)
    ]
    assert without == sorted(without)


def test_times_do_not_depend_on_the_order_of_questions():
    by = replace(ASYNCHRONOUS, mtbf_s=1800.0)
    times = np.sort(np.random.default_rng(0).uniform(0.0, 2e4, 300))
    one, other = JobTime(by, seed=5), JobTime(by, seed=5)
    at_once = one.all_elapsed(times)
    backwards = [other.elapsed(t) for t in reversed(times.tolist())]
    assert at_once.tolist() == backwards[::-1]
    assert (np.diff(at_once) > 0).all()
    assert not np.array_equal(at_once, JobTime(by, seed=6).all_elapsed(times))


def test_a_trace_has_the_times_of_the_clock():
    trace, plain = Trace(JobTime(BLOCKING, seed=0).all_elapsed), Trace()
    for t in (trace, plain):
        t.record(600.0, Event.COMPUTE_START)
        t.record(700.0, Event.COMPUTE_END)
    assert trace.time.tolist() == [600.0, 760.0]
    assert plain.time.tolist() == [600.0, 700.0]
    assert trace.sha256() != plain.sha256()


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interval_s", 0.0),
        ("state_bytes", -1.0),
        ("host_bandwidth", math.inf),
        ("storage_bandwidth", math.nan),
        ("buffer_bytes", -1.0),
        ("overlap_s", 601.0),
        ("restart_s", math.nan),
        ("mtbf_s", 0.0),
        ("mtbf_s", 50.0),  # E is above 1,000 tau
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ConfigError) as error:
        replace(LAZY, **{name: value})
    assert name in str(error.value)
    assert f"{value:g}" in str(error.value)
