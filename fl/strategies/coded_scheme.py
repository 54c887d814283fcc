"""What a scheme of coded work is: who computes what in a round, and whom it can do without.

The work is a sequence of jobs; each is the gradient of all data at one model. A round takes the
time of its workers, less the stragglers that the scheme can do without, and job t has to be decoded
at the end of round t + T. A scheme is a frozen dataclass of its parameters whose methods map what
is known to what is done, so it can be replayed on measured times without a grid
(`fl.strategies.coded_times`); `fl.strategies.CodedRounds` trains by it.

    known = scheme.init()
    work = scheme.assign(known, jobs)                        # job and part of each minitask
    scheme.admits(known, work, missing)                      # whether these may be done without
    known = scheme.after(known, work, missing)
    scheme.decode(known, job)                                # a, if scheme.decodable(known, job)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least
from fl.errors import ConfigError
from fl.strategies.gradient_codes import CODES, CyclicCode, GradientCode, RepetitionCode

Flags = NDArray[np.bool_]
Places = NDArray[np.int64]


class JobProgress(NamedTuple):
    """What there is before a round.

    Attributes:
        round: its number, from 0.
        received: of each job in flight, in which round part p of worker i came, shape (n, parts),
            int64; -1 for those that have not.
        straggled: who counts as a straggler in the rounds before, the last one last, shape (n,)
            each; no more of them than the scheme looks at.
    """

    round: int
    received: Mapping[int, Places]
    straggled: tuple[Flags, ...] = ()


class Minitasks(NamedTuple):
    """The minitasks of a round.

    Attributes:
        jobs: of minitask m of worker i, shape (n, M), int64; -1 if there is none.
        parts: which part of the worker's data it takes, likewise.
    """

    jobs: Places
    parts: Places

    @property
    def busy(self) -> Flags:
        """Who has something to do, shape (n,)."""
        return np.asarray((self.jobs >= 0).any(axis=1))


@dataclass(frozen=True)
class CodedScheme(ABC):
    """Base of the schemes.

    The data are cut into `num_chunks` chunks of equal size. Worker i holds `parts` parts of
    `pieces` chunks; what it sends for part p is the sum of their gradients, each multiplied by a
    coefficient.

    Attributes:
        n: workers.
        code: "fractional_repetition" or "cyclic", see `fl.strategies.gradient_codes`.
        seed: of a cyclic code.

    Raises:
        ConfigError: an argument is out of its range.
    """

    n: int
    code: str = "fractional_repetition"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)
        if self.code not in CODES:
            raise ConfigError(f"code is {self.code!r}; it must be one of {', '.join(CODES)}")

    # ---- where the data are ----------------------------------------------------------------------

    @property
    @abstractmethod
    def num_chunks(self) -> int:
        """Chunks of the data."""

    @property
    def parts(self) -> int:
        """Parts that a worker holds."""
        return 1

    @property
    @abstractmethod
    def pieces(self) -> int:
        """Chunks of a part."""

    @abstractmethod
    def chunks(self, part: int) -> Places:
        """Returns the chunks of a part, shape (n, pieces)."""

    @abstractmethod
    def coefficients(self, part: int) -> NDArray[np.float64]:
        """Returns what their gradients are multiplied by, shape (n, pieces)."""

    # ---- who does what ---------------------------------------------------------------------------

    @property
    def delay(self) -> int:
        """T: job t is decoded at the end of round t + T at the latest."""
        return 0

    @property
    def remembers(self) -> int:
        """Rounds before the present one whose stragglers count."""
        return 0

    @property
    @abstractmethod
    def load(self) -> float:
        """L, the share of the data whose gradients a worker computes in a round, at the most."""

    def init(self) -> JobProgress:
        """Returns what is known before round 0."""
        return JobProgress(0, {})

    @abstractmethod
    def assign(self, known: JobProgress, jobs: int) -> Minitasks:
        """Returns the minitasks of the round, of jobs below `jobs`."""

    @abstractmethod
    def admits(self, known: JobProgress, work: Minitasks, missing: Flags) -> bool:
        """Returns whether the round can do without workers, and every job is decoded in time.

        Args:
            known: before the round.
            work: of the round.
            missing: whose results would be lost, shape (n,).
        """

    def counted(self, known: JobProgress, work: Minitasks, missing: Flags) -> Flags:
        """Returns which of those who were missing count as stragglers in later rounds."""
        return missing

    def after(self, known: JobProgress, work: Minitasks, missing: Flags) -> JobProgress:
        """Returns what is known after a round in which the results of some were lost."""
        last = known.round - self.delay
        received = {job: came for job, came in known.received.items() if job >= last}
        for job in np.unique(work.jobs[work.jobs >= 0]).tolist():
            came = received.get(job, np.full((self.n, self.parts), -1, np.int64)).copy()
            i, m = np.nonzero((work.jobs == job) & ~missing[:, None])
            came[i, work.parts[i, m]] = known.round
            received[job] = came
        straggled = (*known.straggled, self.counted(known, work, missing))
        return JobProgress(
            known.round + 1, received, straggled[max(0, len(straggled) - self.remembers) :]
        )

    @abstractmethod
    def decodable(self, known: JobProgress, job: int) -> bool:
        """Returns whether a job in flight can be decoded from what has come."""

    @abstractmethod
    def decode(self, known: JobProgress, job: int) -> NDArray[np.float64]:
        """Returns a, shape (n, parts), float64: the sum over all data is sum_ip a_ip c_ip.

        Raises:
            NoStep: it cannot be decoded, or not exactly.
        """

    def _code(self, s: int) -> GradientCode:
        if self.code == "cyclic":
            return CyclicCode(self.n, s, self.seed)
        return RepetitionCode(self.n, s)


def bursty(known: JobProgress, missing: Flags, *, B: int, W: int, most: int) -> bool:
    """Returns whether stragglers are those of the (B, W, lambda)-bursty model (arXiv:2211.13802).

    In every window of W rounds at most lambda workers straggle, and the first and the last round in
    which one of them does are less than B apart.

    Args:
        known: with the stragglers of the last W - 1 rounds.
        missing: in this round, shape (n,).
        B: longest burst.
        W: rounds of a window.
        most: lambda.
    """
    before = known.straggled
    straggling = np.logical_or.reduce([missing, *before])
    if int(straggling.sum()) > most:
        return False
    long_ago = before[: max(0, len(before) - B + 1)]
    return not any(bool((missing & then).any()) for then in long_ago)


def check_bursty(B: int, W: int, most: int, n: int) -> None:
    """Raises ConfigError if the parameters of the bursty model are out of their range."""
    at_least("B", B, 1)
    at_least("lam", most, 0)
    if W <= B:
        raise ConfigError(f"W is {W}; it must be above B, {B}: set W={B + 1} or more")
    if most > n:
        raise ConfigError(
            f"lam is {most}; it must be at most the number of workers, {n}: set lam={n} or less, "
            f"or num_clients={most} or more"
        )
