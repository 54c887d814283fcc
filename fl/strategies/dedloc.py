"""DeDLOC: volunteers add up gradients until they have a large batch together.

Diskin, Bukhtiyarov, Ryabinin et al., "Distributed Deep Learning in Open Collaborations", NeurIPS
2021, arXiv:2106.10207; learning-at-home/hivemind, optim/progress_tracker.py and optim/optimizer.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from fl.checks import at_least, boolean
from fl.strategies.data_parallel import DataParallel
from fl.strategies.outer_optimizers import OuterLamb, OuterOptimizer

ALPHA = 0.1
"""Weight of the newest measurement in a peer's speed; hivemind's."""

_LEAST_S = 1e-12  # a sample that took no time must not make a speed infinite


class Speed(NamedTuple):
    """A peer's speed.

    Attributes:
        seconds: moving average of the seconds that a sample takes, begun at 0.
        n: measurements in it.
    """

    seconds: float = 0.0
    n: int = 0

    def measured(self, samples: int, seconds: float) -> Speed:
        """Returns the speed after so many samples took so long."""
        newest = seconds / samples
        return Speed(ALPHA * newest + (1 - ALPHA) * self.seconds, self.n + 1)

    @property
    def rate(self) -> float:
        """Samples per second, corrected for the beginning at 0; 0 before a measurement."""
        if not self.n:
            return 0.0
        return 1.0 / max(self.seconds / (1 - (1 - ALPHA) ** self.n), _LEAST_S)


class Report(NamedTuple):
    """What a peer tells the others about the batch that they gather.

    Attributes:
        samples: that it has added up.
        rate: its samples per second.
        time: when it told so, s.
        most: samples that it can have added up since: those of a micro-batch, after which it tells.
    """

    samples: int
    rate: float
    time: float
    most: float = math.inf

    def by(self, now: float) -> float:
        """Returns how many samples it has at a time, as far as can be told."""
        return self.samples + min(max(0.0, now - self.time) * self.rate, self.most)


@dataclass(frozen=True)
class DeDLOC(DataParallel):
    """Steps by the mean gradient of a batch that all peers gather together, each at its own pace.

        peer i:    G_i <- G_i + sum of its micro-batch's gradients,  n_i <- n_i + its samples
        until      sum_j (n_j + min((now - t_j) r_j, b_j)) >= target_batch,
                   with n_j as peer j told at t_j, r_j its samples per second, and b_j those of a
                   micro-batch, after which it tells again;
        then       theta <- Optimizer(theta, sum_i G_i / sum_i n_i),    G_i, n_i <- 0.

    So a step is that of one machine with the whole batch, whoever is there and however the samples
    are spread.

    With `delayed`, peers add up the next batch while the all-reduce is on its way, at the
    parameters before it: every gradient is one step stale, and a step takes the longer of the two.

    Attributes:
        optimizer: of the parameters; LAMB, by which the paper trains ALBERT.
        target_batch: samples of a step, at least; 4096 for the paper's ALBERT.
        delayed: as above.
        inner_steps: 1.

    Raises:
        ConfigError: an argument is out of its range.
    """

    why_no_drop: ClassVar[str] = "a batch whose samples are lost is gathered on"

    optimizer: OuterOptimizer = field(default_factory=OuterLamb)
    target_batch: int = 4096
    delayed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("target_batch", self.target_batch, 1)
        boolean("delayed", self.delayed)

    @property
    def overlap(self) -> int:  # type: ignore[override]  # follows from another argument
        """1 if delayed."""
        return int(self.delayed)

    def estimated(self, reports: Iterable[Report], now: float) -> float:
        """Returns how many samples the peers have by now, as far as can be told."""
        return sum(report.by(now) for report in reports)

    def reached(self, reports: Iterable[Report], now: float) -> bool:
        """Returns whether a peer stops adding up, and looks for the others."""
        # The last bit of a product must not cost a micro-batch.
        return self.estimated(reports, now) >= self.target_batch * (1 - 1e-9)
