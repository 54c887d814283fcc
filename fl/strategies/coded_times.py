"""How long coded work takes on measured times, and which parameters are the fastest there.

Section 4 of Krishnan, Ebrahimi, Khisti, arXiv:2211.13802: nothing is trained, rounds are replayed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, not_negative
from fl.errors import ConfigError, SimulationError
from fl.strategies.coded_scheme import CodedScheme, JobProgress, Minitasks

Seconds = NDArray[np.float64]
WaitOut = Literal["all", "enough"]
"""For whom a round waits whose stragglers cannot be done without: all, or as many as are needed."""


@dataclass(frozen=True, eq=False)
class CodedTimes:
    """Rounds of a scheme, replayed.

    Attributes:
        scheme: that was replayed.
        round_s: s that each round took, shape (J + T,).
        waited_out: which of them had more stragglers than can be done without, likewise.
    """

    scheme: CodedScheme
    round_s: Seconds
    waited_out: NDArray[np.bool_]

    @property
    def total_s(self) -> float:
        """Of all jobs, s."""
        return float(self.round_s.sum())


def round_end(
    scheme: CodedScheme,
    known: JobProgress,
    work: Minitasks,
    seconds: Seconds,
    mu: float,
    wait_out: WaitOut,
) -> tuple[float, NDArray[np.bool_], bool]:
    """Returns when a round ends, whose results are lost, and whether it was waited out.

    Workers that take longer than 1 + mu times the first are stragglers. If the scheme admits them
    the round ends then, or before, when all have answered.

    Args:
        scheme: of the rounds.
        known: before the round.
        work: of the round.
        seconds: that each worker takes, shape (n,).
        mu: see above.
        wait_out: see `WaitOut`.
    """
    busy = work.busy
    if not busy.any():
        return 0.0, ~busy & False, False
    longest, deadline = float(seconds[busy].max()), float((1 + mu) * seconds[busy].min())
    missing = busy & (seconds > deadline)
    if scheme.admits(known, work, missing):
        return min(deadline, longest), missing, False
    if wait_out == "enough":
        for end in np.unique(seconds[missing])[:-1].tolist():
            if scheme.admits(known, work, busy & (seconds > end)):
                return end, busy & (seconds > end), True
    return longest, missing & False, True


def replayed(
    scheme: CodedScheme, seconds: Seconds, jobs: int, *, mu: float = 1.0, wait_out: WaitOut = "all"
) -> CodedTimes:
    """Returns the times of a scheme's rounds.

    Args:
        scheme: of n workers.
        seconds: that worker i takes in round r under the scheme's load, shape (rounds, n).
        jobs: J, at least 1.
        mu: tolerance of a round, at least 0.
        wait_out: see `WaitOut`.

    Raises:
        ConfigError: an argument is out of its range, or has fewer than J + T rounds of n workers.
        SimulationError: a job is not decoded in time, which no scheme here lets happen.
    """
    at_least("jobs", jobs, 1)
    not_negative("mu", mu)
    rounds = jobs + scheme.delay
    if seconds.ndim != 2 or len(seconds) < rounds or seconds.shape[1] != scheme.n:
        raise ConfigError(
            f"seconds has shape {seconds.shape}; {jobs} jobs of this scheme take at least {rounds} "
            f"rounds of {scheme.n} workers"
        )
    known, round_s, waited_out = scheme.init(), [], []
    for r in range(rounds):
        work = scheme.assign(known, jobs)
        end, missing, waited = round_end(scheme, known, work, seconds[r], mu, wait_out)
        known = scheme.after(known, work, missing)
        job = r - scheme.delay
        if job >= 0 and not scheme.decodable(known, job):
            raise SimulationError(f"job {job} is not decoded at the end of round {r}")
        round_s.append(end)
        waited_out.append(waited)
    return CodedTimes(scheme, np.array(round_s), np.array(waited_out))


def fastest(
    schemes: Iterable[CodedScheme],
    seconds: Seconds,
    jobs: int,
    *,
    seconds_per_load: float,
    mu: float = 1.0,
    wait_out: WaitOut = "all",
) -> CodedTimes:
    """Returns the replay of the scheme that is the fastest on a profile.

    A worker takes D(L) = D(0) + L seconds_per_load under load L. Of equally fast ones the first is
    taken.

    Args:
        schemes: with the parameters to choose from; those that take more rounds than the profile
            has are left out.
        seconds: D(0), shape (rounds, n).
        jobs: J.
        seconds_per_load: s of a load of 1, at least 0.
        mu: see `replayed`.
        wait_out: see `WaitOut`.

    Raises:
        ConfigError: an argument is out of its range, or the profile is too short for all.
    """
    not_negative("seconds_per_load", seconds_per_load)
    times = [
        replayed(s, seconds + s.load * seconds_per_load, jobs, mu=mu, wait_out=wait_out)
        for s in schemes
        if jobs + s.delay <= len(seconds)
    ]
    if not times:
        raise ConfigError(
            f"the profile has {len(seconds)} rounds, which are too few for {jobs} jobs of any "
            "scheme: measure more, or lower jobs"
        )
    return min(times, key=lambda each: each.total_s)
