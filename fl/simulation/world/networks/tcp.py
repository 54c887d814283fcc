"""What TCP makes of latency: a window, slow start, and unequal shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl.errors import ConfigError


@dataclass(frozen=True)
class Tcp:
    """How a transfer's rate depends on its round-trip time.

    Attributes:
        window_bytes: the most that a connection has on its way, so that it gets 8 window / RTT
            bit/s at most. None is no bound.
        initial_window_bytes: what a connection sends before the first acknowledgement; what is on
            its way then doubles with each round trip (slow start), see `ramp_s`. RFC 6928 has
            14,600, ten segments. A message begins with it: after a pause longer than its
            retransmission timeout a connection begins anew (RFC 2861, RFC 9002 section 7.7 for
            QUIC), and messages of a client are a task apart. None begins at full rate.
        rtt_fairness: connections get shares of a bottleneck in proportion to 1 / RTT, as those of
            Reno and CUBIC do in the long run under equal loss; false: equal shares.

    Raises:
        ConfigError: a window is below 1 byte, or the initial one is the larger.
    """

    window_bytes: float | None = None
    initial_window_bytes: float | None = None
    rtt_fairness: bool = False

    def __post_init__(self) -> None:
        for name in ("window_bytes", "initial_window_bytes"):
            value = getattr(self, name)
            if value is None:
                continue
            right = isinstance(value, int | float) and not isinstance(value, bool)
            if not (right and 1 <= value < math.inf):
                raise ConfigError(
                    f"{name} is {value!r}; it must be null, or finite and at least 1: a connection "
                    "has that many bytes on its way"
                )
        window, initial = self.window_bytes, self.initial_window_bytes
        if window is not None and initial is not None and initial > window:
            raise ConfigError(
                f"initial_window_bytes is {initial}, above window_bytes, which is {window}: a "
                "connection begins with no more than it may have on its way"
            )
        if not isinstance(self.rtt_fairness, bool):
            raise ConfigError(f"rtt_fairness is {self.rtt_fairness!r}; it must be true or false")

    def cap_bps(self, rtt_s: float) -> float:
        """Returns the most that a connection gets at a round-trip time, bit/s."""
        if self.window_bytes is None or rtt_s == 0.0:
            return math.inf
        return 8.0 * self.window_bytes / rtt_s

    def ramp_s(self, size_bytes: float, rate_bps: float, rtt_s: float) -> float:
        """Returns how much longer a transfer takes because it begins slowly.

            P (RTT + S / R) - (2**P - 1) S / R

        with S the initial window, R the rate, and P the windows after which the sender waits for
        an acknowledgement: the Q = ceil(log2(1 + RTT R / S)) of an endless transfer, but no more
        than K - 1, with K = ceil(log2(1 + size / S)) the windows that the payload fills (Kurose and
        Ross, Computer Networking, 3rd edition, section 3.7, where Q counts a wait of length 0 as
        well).

        R is what the transfer gets if nobody else is on its way: under contention the ramp is
        shorter, and this is a bound.

        Args:
            size_bytes: of the payload.
            rate_bps: R, positive, may be infinite.
            rtt_s: round-trip time in s.
        """
        if self.initial_window_bytes is None or rtt_s == 0.0 or size_bytes == 0:
            return 0.0
        window_s = 8.0 * self.initial_window_bytes / rate_bps  # S / R
        waits = math.ceil(math.log2(1.0 + size_bytes / self.initial_window_bytes)) - 1
        if window_s > 0.0:
            waits = min(waits, math.ceil(math.log2(1.0 + rtt_s / window_s)))
        waits = max(waits, 0)
        return waits * (rtt_s + window_s) - (2.0**waits - 1.0) * window_s
