"""Sequential gradient coding: several jobs are in flight, so that bursts of stragglers can pass.

Krishnan, Ebrahimi, Khisti, "Sequential Gradient Coding For Straggler Mitigation", ICLR 2023,
arXiv:2211.13802; where the paper leaves things open, the rules are those of the authors' code
(mamaj/Sequential-Gradient-Coding-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.strategies.coded_scheme import (
    CodedScheme,
    Flags,
    JobProgress,
    Minitasks,
    Places,
    bursty,
    check_bursty,
)
from fl.strategies.gradient_codes import GradientCode
from fl.strategies.gradient_coding import OneCode


@dataclass(frozen=True)
class SRSGC(OneCode):
    """SR-SGC: gradient coding whose stragglers repeat what is lacking, B rounds later.

        s = ceil(B lambda / (W - 1 + B)),    T = B

    In round t all workers do job t of an (n, s) code. If more than s did not deliver job t - B in
    round t - B, v of them, the first v - s of those do it now, instead of job t. With at most s
    missing in every round this is gradient coding. A round in which all worked on its own job and
    at most s straggled does not count as one with stragglers.

    Attributes:
        B: longest burst of a straggler, in rounds; divides W - 1.
        W: rounds of the window in which stragglers are counted, above B.
        lam: lambda, stragglers in a window, at most n.

    Raises:
        ConfigError: an argument is out of its range, or s is not below n.
    """

    B: int = 1
    W: int = 2
    lam: int = 1

    def __post_init__(self) -> None:
        check_bursty(self.B, self.W, self.lam, self.n)
        if (self.W - 1) % self.B:
            raise ConfigError(
                f"B is {self.B}; it must divide W - 1, which is {self.W - 1}: set B=1, or "
                f"W={self.B + 1}, for example"
            )
        super().__post_init__()

    @property
    def tolerated(self) -> int:
        """It is s."""
        return -(-self.B * self.lam // (self.W - 1 + self.B))

    @property
    def delay(self) -> int:
        """B."""
        return self.B

    @property
    def remembers(self) -> int:
        """W - 1."""
        return self.W - 1

    def assign(self, known: JobProgress, jobs: int) -> Minitasks:
        """Returns job t for all in round t, or t - B for those that repeat it."""
        t, before = known.round, known.round - self.B
        of = np.full(self.n, t if t < jobs else -1)
        if 0 <= before < jobs and not self.decodable(known, before):
            lacking = np.flatnonzero(known.received[before][:, 0] < 0)
            of[lacking[: len(lacking) - self.tolerated]] = before
        return Minitasks(of[:, None], np.minimum(of, 0)[:, None])

    def admits(self, known: JobProgress, work: Minitasks, missing: Flags) -> bool:
        """Returns whether the stragglers are still those of the bursty model."""
        return bursty(known, missing, B=self.B, W=self.W, most=self.lam)

    def counted(self, known: JobProgress, work: Minitasks, missing: Flags) -> Flags:
        """Returns those who were missing, unless the round did without them."""
        own = bool((work.jobs == known.round).all())
        exempt = own and int(missing.sum()) <= self.tolerated
        return np.zeros_like(missing) if exempt else missing


@dataclass(frozen=True)
class MSGC(CodedScheme):
    """M-SGC: a round multiplexes minitasks of W - 1 + B jobs, most of them uncoded.

        T = W - 2 + B
        L = (lambda + 1) (W - 1 + B) / (n (B + (W - 1) (lambda + 1))),    lambda < n
        L = (W - 1 + B) / (n (W - 1)),                                    lambda = n

    Worker i holds W - 1 parts of the data for itself, D1, and one part of each of B groups, D2,
    that are coded across workers by an (n, lambda) code. Minitask m of round r is of job r - m. The
    first W - 1 take its parts of D1, one after the other. Each of the last B takes a part of D1
    that got lost, and the part of group m - W + 1 of D2 if none did. All parts have the same size.

    A worker sends one vector for each of its jobs, so that what it sends in a round is up to
    W - 1 + B times as long as with gradient coding.

    Attributes:
        B: longest burst of a straggler, in rounds, below W.
        W: rounds of the window in which stragglers are counted.
        lam: lambda, stragglers in a window, at most n.

    Raises:
        ConfigError: an argument is out of its range.
    """

    B: int = 1
    W: int = 2
    lam: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bursty(self.B, self.W, self.lam, self.n)
        self.gc  # noqa: B018 (raises)

    @cached_property
    def gc(self) -> GradientCode | None:
        """The (n, lambda) code of D2; None if everything is in D1."""
        return self._code(self.lam) if self.lam < self.n else None

    @property
    def num_chunks(self) -> int:
        """There are n (B + (W - 1) (lambda + 1)), or n (W - 1)."""
        own = self.n * (self.W - 1) * self.pieces
        return own if self.gc is None else own + self.n * self.B

    @property
    def parts(self) -> int:
        """W - 1 of D1, and B of D2."""
        return self.W - 1 + (0 if self.gc is None else self.B)

    @property
    def pieces(self) -> int:
        """Each has lambda + 1, in D1 as well; 1 without D2."""
        return 1 if self.gc is None else self.lam + 1

    @property
    def delay(self) -> int:
        """W - 2 + B."""
        return self.W - 2 + self.B

    @property
    def remembers(self) -> int:
        """W - 1."""
        return self.W - 1

    @property
    def load(self) -> float:
        """L."""
        return self.pieces * (self.W - 1 + self.B) / self.num_chunks

    def chunks(self, part: int) -> Places:
        """Returns those of D1 of each worker, or of a group of D2."""
        if part < self.W - 1 or self.gc is None:
            first = (np.arange(self.n) * (self.W - 1) + part) * self.pieces
            return np.asarray(first[:, None] + np.arange(self.pieces))
        before = self.n * ((self.W - 1) * self.pieces + part - (self.W - 1))
        return before + self.gc.chunks

    def coefficients(self, part: int) -> NDArray[np.float64]:
        """Returns ones for D1, B of the code for D2."""
        if part < self.W - 1 or self.gc is None:
            return np.ones((self.n, self.pieces))
        return self.gc.coefficients

    def assign(self, known: JobProgress, jobs: int) -> Minitasks:
        """Returns the minitasks of round r."""
        M = self.W - 1 + self.B
        of, parts = np.full((self.n, M), -1), np.full((self.n, M), -1)
        for m in range(M):
            job = known.round - m
            if not 0 <= job < jobs:
                continue
            part = np.full(self.n, m)
            if m >= self.W - 1:
                lacking = known.received[job][:, : self.W - 1] < 0
                coded = -1 if self.gc is None else m
                part = np.where(lacking.any(axis=1), lacking.argmax(axis=1), coded)
            of[:, m], parts[:, m] = np.where(part < 0, -1, job), part
        return Minitasks(of, parts)

    def admits(self, known: JobProgress, work: Minitasks, missing: Flags) -> bool:
        """Returns whether the stragglers are still those of the bursty model."""
        return bursty(known, missing, B=self.B, W=self.W, most=self.lam)

    def decodable(self, known: JobProgress, job: int) -> bool:
        """Returns whether all of D1 is there, and enough of each group of D2."""
        there = known.received[job] >= 0
        if not there[:, : self.W - 1].all():
            return False
        return self.gc is None or all(map(self.gc.decodes, there[:, self.W - 1 :].T))

    def decode(self, known: JobProgress, job: int) -> NDArray[np.float64]:
        """Returns ones for D1, and a of the code for each group of D2."""
        there = known.received[job] >= 0
        a = there.astype(np.float64)
        if self.gc is not None:
            for part in range(self.W - 1, self.parts):
                a[:, part] = self.gc.decode(there[:, part])
        return a
