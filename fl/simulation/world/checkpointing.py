"""Checkpoints of a job, and what it does over after failures, on the clock of those who wait.

The machines of a job fail and stall together: while one writes a checkpoint that all need, or the
job starts again from one, nobody goes on. So all that happens in a job happens in its own time, and
this module says when that is. What is done over ends as it did the first time, since a checkpoint
has everything that training depends on; it takes time, and changes no number.

A checkpoint is copied from the devices to a buffer in the host's memory, and flushed from there to
storage as it comes in. With S bytes, copied at b_h and flushed at b_s bytes a second, a copy takes
S / b_h, or, once the buffer is full, the time of the flush. Three methods differ in who waits:

- blocking: no buffer; training stands still for S / min(b_h, b_s);
- asynchronous: it stands still for the copy;
- lazy: the copy goes on beside the next forward and backward pass, and training stands still only
  if the parameters would be updated before it has ended. Maurya, Underwood, Rafique, Cappello,
  Nicolae, "DataStates-LLM: Lazy Asynchronous Checkpointing for Large Language Models", HPDC 2024,
  arXiv:2406.10707; code DataStates/datastates-llm.

A failure takes the job back to the newest checkpoint that was flushed when it struck; what is in
the buffer is lost with the host.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import not_negative, positive, read_if
from fl.errors import ConfigError
from fl.randomness import uniform
from fl.simulation.world.checkpoint_interval import daly, exact, expected_s, young

_MOST = 1000.0  # times the work, that a job is expected to take


@read_if(lambda a: a["mtbf_s"] is not None, "restart_s", only="nothing fails without {at}mtbf_s")
@dataclass(frozen=True)
class Checkpointing:
    """When a job writes checkpoints, how, and how often it fails.

    Attributes:
        interval_s: job time between the beginnings of two checkpoints, tau.
        state_bytes: what a device has to write, S; with mixed precision and Adam, 16 bytes for
            each parameter that it holds.
        host_bandwidth: from a device to its host's memory, b_h, bytes/s.
        storage_bandwidth: from a host to storage, b_s, bytes/s for each device.
        buffer_bytes: of host memory for each device; 0 writes past it, which blocks.
        overlap_s: of the forward and backward pass that come after a checkpoint, beside which it
            is copied; 0 waits for the copy.
        restart_s: from a failure until the job goes on: noticing it, replacing machines, reading
            the checkpoint.
        mtbf_s: mean time between failures of the whole job, M, which are a Poisson process on the
            clock, also during checkpoints and restarts: for n machines, a machine's over n. None
            never fails.

    Raises:
        ConfigError: a number is out of its range; the pass is longer than the interval; or the job
            would hardly get from one checkpoint to the next.
    """

    interval_s: float
    state_bytes: float
    host_bandwidth: float
    storage_bandwidth: float
    buffer_bytes: float = 0.0
    overlap_s: float = 0.0
    restart_s: float = 300.0
    mtbf_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("interval_s", "host_bandwidth", "storage_bandwidth"):
            positive(name, getattr(self, name))
        for name in ("state_bytes", "buffer_bytes", "overlap_s", "restart_s"):
            not_negative(name, getattr(self, name))
        if self.overlap_s > self.interval_s:
            raise ConfigError(
                f"overlap_s is {self.overlap_s:g} and interval_s {self.interval_s:g}: a checkpoint "
                "has to be copied before the next one begins; raise interval_s"
            )
        if self.mtbf_s is None:
            return
        positive("mtbf_s", self.mtbf_s)
        whole_s = self.state_bytes / min(self.host_bandwidth, self.storage_bandwidth)
        most = _MOST * self.interval_s
        if expected_s(self.interval_s, whole_s, self.restart_s, self.mtbf_s) > most:
            raise ConfigError(
                f"mtbf_s is {self.mtbf_s:g}, but interval_s is {self.interval_s:g}, writing a "
                f"checkpoint takes {whole_s:g} s, and restart_s is {self.restart_s:g}: a job would "
                f"take {_MOST:g} times as long as its work; lower them, or raise mtbf_s"
            )

    def copied(self, since: float, flushed: float) -> tuple[float, float]:
        """Returns when a checkpoint is in the buffer, and when it is in storage, s.

        Args:
            since: when it begins, s.
            flushed: when what is in the buffer by then is in storage, s.
        """
        size, b_h, b_s = self.state_bytes, self.host_bandwidth, self.storage_bandwidth
        backlog = b_s * max(0.0, flushed - since)
        copy_s = size / b_h
        if b_h > b_s:
            fills_s = max(0.0, self.buffer_bytes - backlog) / (b_h - b_s)
            if fills_s < copy_s:  # from then on as fast as room is made
                copy_s = fills_s + (size - b_h * fills_s) / b_s
        return since + copy_s, max(since + copy_s, since + (backlog + size) / b_s)


class _Cost(Enum):
    CHECKPOINT = "checkpoints"
    FAILURE = "failures"
    STALL = "stalled_s"
    LOST = "lost_s"
    RESTART = "restarting_s"


class _Barrier(NamedTuple):
    """The job goes no further than `at` before the clock shows `until`."""

    at: float
    until: float


class JobTime:
    """When a job that writes checkpoints, and fails, gets how far.

    Job time p is on the clock at p + (all that it has stood still, and done over, before). A moment
    that is done over counts when it was reached first.

    Args:
        by: when checkpoints are written, and how often the job fails.
        seed: of the failures, stream (seed, "job-failure", 0, k).
    """

    def __init__(self, by: Checkpointing, seed: int) -> None:
        self.by = by
        self._seed = seed
        # Job time after starts[i], and up to starts[i + 1], is later on the clock by behind[i].
        self._starts, self._behind = [0.0], [0.0]
        self._reached = 0.0  # the furthest point
        self._p = 0.0  # where it is
        self._late = 0.0  # clock less p
        self._number = 0  # of the last checkpoint, at number * interval
        self._kept = 0  # of the newest one in storage
        self._flushing: list[tuple[float, int]] = []  # when they are in storage, and numbers
        self._barrier: _Barrier | None = None
        self._gaps = 0  # between failures, drawn
        self._fails = self._gap()  # when it does next
        self._events: list[tuple[float, _Cost, float]] = []  # clock, what, s

    def elapsed(self, job_s: float) -> float:
        """Returns what the clock shows when the job gets there, s."""
        self._reach(job_s)
        return job_s + self._behind[max(0, bisect_left(self._starts, job_s) - 1)]

    def all_elapsed(self, job_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns `elapsed` of many times, shape (n,), float64."""
        self._reach(float(job_s.max(initial=0.0)))
        at = np.maximum(np.searchsorted(self._starts, job_s) - 1, 0)
        return np.asarray(job_s + np.asarray(self._behind)[at], dtype=np.float64)

    def report(self, job_s: float) -> dict[str, Any]:
        """Returns what checkpoints and failures have cost when the job is there, for a summary.

        Returns:
            Numbers of checkpoints and failures; s of stalls, of work that was lost, and of
            restarts, which with `job_s` add up to `elapsed`; and, of a job that fails, the
            intervals that would be best where a checkpoint stalls it for so long.
        """
        now = self.elapsed(job_s)
        sums = dict.fromkeys(_Cost, 0.0)
        for when, kind, amount in self._events:
            if when <= now:
                sums[kind] += amount
        found: dict[str, Any] = {"job_s": job_s, "interval_s": self.by.interval_s}
        for kind, total in sums.items():
            whole = kind in (_Cost.CHECKPOINT, _Cost.FAILURE)
            found[kind.value] = int(total) if whole else total
        if self.by.mtbf_s is not None and sums[_Cost.CHECKPOINT]:
            stall_s = sums[_Cost.STALL] / sums[_Cost.CHECKPOINT]
            for name, best in (("young_s", young), ("daly_s", daly), ("exact_s", exact)):
                found[name] = best(stall_s, self.by.mtbf_s)
        return found

    # ---- inside ------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._p + self._late

    def _reach(self, job_s: float) -> None:
        while self._reached < job_s:
            self._go_on()

    def _go_on(self) -> None:
        """Goes on to the next checkpoint, barrier or failure, and past it."""
        due = (self._number + 1) * self.by.interval_s
        barrier = self._barrier
        stop = due if barrier is None else min(due, barrier.at)
        if self._fails < stop + self._late:
            self._work(max(self._p, self._fails - self._late))
            self._fail()
            return
        self._work(stop)
        if barrier is not None and barrier.at <= stop:
            self._barrier = None
            if self._fails < barrier.until:
                self._stall(self._fails)
                self._fail()
                return
            self._stall(barrier.until)
        if stop == due:
            self._begin_checkpoint()

    def _work(self, p: float) -> None:
        if p > self._reached:
            if self._late != self._behind[-1]:
                self._starts.append(self._reached)
                self._behind.append(self._late)
            self._reached = p
        self._p = p

    def _stall(self, until: float) -> None:
        seconds = until - self._now
        if seconds > 0:
            self._note(until, _Cost.STALL, seconds)
            self._late += seconds

    def _begin_checkpoint(self) -> None:
        now = self._now
        self._keep(now)
        self._number += 1
        last = self._flushing[-1][0] if self._flushing else now
        copied, flushed = self.by.copied(now, last)
        self._flushing.append((flushed, self._number))
        self._barrier = _Barrier(self._p + self.by.overlap_s, copied)
        self._note(now, _Cost.CHECKPOINT, 1)

    def _keep(self, now: float) -> None:
        """Takes note of what is in storage by now."""
        while self._flushing and self._flushing[0][0] <= now:
            _, self._kept = self._flushing.pop(0)

    def _fail(self) -> None:
        now = self._fails
        self._keep(now)
        self._flushing.clear()
        self._barrier = None
        self._number = self._kept
        safe = self._kept * self.by.interval_s
        self._note(now, _Cost.FAILURE, 1)
        self._note(now, _Cost.LOST, self._p - safe)
        self._late += self._p - safe
        self._p = safe
        while True:
            self._fails = now + self._gap()
            until = min(now + self.by.restart_s, self._fails)
            self._note(until, _Cost.RESTART, until - now)
            self._late += until - now
            if until < self._fails:
                return
            now = until
            self._note(now, _Cost.FAILURE, 1)

    def _note(self, when: float, kind: _Cost, amount: float) -> None:
        self._events.append((when, kind, amount))

    def _gap(self) -> float:
        """Returns the time to the next failure, s."""
        if self.by.mtbf_s is None:
            return math.inf
        u = uniform(self._seed, "job-failure", 0, self._gaps)
        self._gaps += 1
        return -self.by.mtbf_s * math.log1p(-u)
