"""Gradient coding: every round does without any s of its n workers.

Tandon, Lei, Dimakis, Karampatziakis, ICML 2017, arXiv:1612.03301.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl.strategies.coded_scheme import CodedScheme, Flags, JobProgress, Minitasks, Places
from fl.strategies.gradient_codes import GradientCode


class OneCode(CodedScheme):
    """Base of the schemes whose workers send one combination of one (n, s) code for a job."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gc  # noqa: B018 (raises)

    @property
    @abstractmethod
    def tolerated(self) -> int:
        """s, the stragglers that the code bears."""

    @cached_property
    def gc(self) -> GradientCode:
        """The (n, s) code."""
        return self._code(self.tolerated)

    @property
    def num_chunks(self) -> int:
        """One for each worker, n."""
        return self.n

    @property
    def pieces(self) -> int:
        """Each has s + 1."""
        return self.tolerated + 1

    @property
    def load(self) -> float:
        """(s + 1) / n."""
        return self.pieces / self.n

    def chunks(self, part: int) -> Places:
        """Returns those of the code."""
        return self.gc.chunks

    def coefficients(self, part: int) -> NDArray[np.float64]:
        """Returns B."""
        return self.gc.coefficients

    def decodable(self, known: JobProgress, job: int) -> bool:
        """Returns whether those that have come give the sum."""
        return self.gc.decodes(known.received[job][:, 0] >= 0)

    def decode(self, known: JobProgress, job: int) -> NDArray[np.float64]:
        """Returns a of the code, shape (n, 1)."""
        return self.gc.decode(known.received[job][:, 0] >= 0)[:, None]


@dataclass(frozen=True)
class GradientCoding(OneCode):
    """GC: worker i sends c_i = sum_j B_ij g_j, and sum_i a_i c_i = sum_j g_j of any n - s of them.

    With s = 0 nothing is coded: each worker has a chunk of its own, and all are waited for.

    Attributes:
        s: stragglers that a round does without, at least 0, below n.

    Raises:
        ConfigError: an argument is out of its range.
    """

    s: int = 1

    @property
    def tolerated(self) -> int:
        """It is s."""
        return self.s

    def assign(self, known: JobProgress, jobs: int) -> Minitasks:
        """Returns job t for all in round t."""
        job = known.round if known.round < jobs else -1
        return Minitasks(np.full((self.n, 1), job), np.full((self.n, 1), min(job, 0)))

    def admits(self, known: JobProgress, work: Minitasks, missing: Flags) -> bool:
        """Returns whether the others give the sum."""
        return self.gc.decodes(~missing)
