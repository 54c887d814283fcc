"""What a radio takes by its states: while it sends or receives, ready for more, and woken up.

In the models that phones were measured for, power grows with the rate, and a radio that has sent or
received stays ready for some time, in which it draws nearly as much as when it works (the tail).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fl.checks import is_a, not_negative
from fl.errors import ConfigError


@dataclass(frozen=True)
class Radio:
    """The power of a radio, beside what its phone draws while it waits.

    At R bit/s it draws base_w + j_per_bit R, so that a transfer of S bits in T s takes

        base_w T + j_per_bit S

    joules, however its rate goes. It then draws tail_w for tail_s, or until the next transfer; one
    that comes later finds the radio asleep, and takes promotion_j more. The times of transfers are
    those of links: waking up takes none of its own.

    Source: the power model of Huang, Qian, Gerber, Mao, Sen, Spatscheck, "A Close Examination of
    Performance and Power Characteristics of 4G LTE Networks", MobiSys 2012. There the phases of
    the tail (DRX) have powers of their own; here it has one, their mean.

    Attributes:
        base_w: while it sends or receives, W.
        down_j_per_bit: for each bit that it receives, J: W for each bit/s.
        up_j_per_bit: for each bit that it sends, J.
        tail_s: how long it stays ready, s.
        tail_w: meanwhile, W.
        promotion_j: to wake up, J.

    Raises:
        ConfigError: a number is negative or not finite.
    """

    base_w: float
    down_j_per_bit: float = 0.0
    up_j_per_bit: float = 0.0
    tail_s: float = 0.0
    tail_w: float = 0.0
    promotion_j: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            not_negative(field.name, getattr(self, field.name))

    def transfer_j(self, seconds: float, down_bits: float, up_bits: float) -> float:
        """Returns what it takes to send and receive so many bits in so many s, J."""
        return self.base_w * seconds + self.down_j_per_bit * down_bits + self.up_j_per_bit * up_bits

    def ready_j(self, idle_s: float) -> float:
        """Returns what a transfer costs beside itself, J, that begins so long after the last.

        The tail after it is paid with it, and the next one pays for the s by which that begins
        later: so all together pay for the s in which the radio was ready, and sums never fall.

        Args:
            idle_s: since the end of the last transfer, s; infinite for the first, and negative or 0
                where it began before that.
        """
        joules = self.tail_w * min(max(idle_s, 0.0), self.tail_s)
        return joules + self.promotion_j if idle_s > self.tail_s else joules


@dataclass(frozen=True, eq=False)
class Radios:
    """The radios of a fleet's clients.

    Attributes:
        kind: index into `kinds`, integer, shape (n,).
        kinds: of radio.

    Raises:
        ConfigError: there is no such kind.
    """

    kind: NDArray[np.integer]
    kinds: Sequence[Radio]

    def __post_init__(self) -> None:
        for i, radio in enumerate(self.kinds):
            is_a(f"kinds[{i}]", radio, Radio)
        if self.kind.min() < 0 or self.kind.max() >= len(self.kinds):
            raise ConfigError(
                f"radios' kinds go from {self.kind.min()} to {self.kind.max()}, but there are "
                f"{len(self.kinds)}"
            )

    def of(self, client: int) -> Radio:
        """Returns a client's radio."""
        return self.kinds[self.kind.item(client)]
