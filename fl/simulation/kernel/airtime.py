"""What the radios of a fleet have taken, where that depends on their states."""

from __future__ import annotations

import math

from fl.simulation.world.fleet import Fleet
from fl.simulation.world.radio import Radios


class Airtime:
    """When each client's radio was last in use, and what transfers cost because of that.

    Transfers of a client that overlap are told one after the other, and each pays for its own
    seconds: what they share (`Fleet.prefetch`) is paid as often as it is used.

    Args:
        fleet: the clients.
        radios: theirs.
    """

    lasting = ("_last",)

    def __init__(self, fleet: Fleet, radios: Radios) -> None:
        self._radios = radios
        self._idle_w = fleet.devices.idle_w
        self._last: dict[int, float] = {}  # end of a client's last transfer, s

    def watts(self, client: int) -> float:
        """Returns what a client draws while its radio is in use, whatever the rate, W."""
        return self._idle_w.item(client) + self._radios.of(client).base_w

    def joules(
        self,
        client: int,
        began_s: float,
        ended_s: float,
        seconds: float,
        down_bits: float = 0.0,
        up_bits: float = 0.0,
    ) -> float:
        """Returns what a transfer takes, J: of phone and radio, and what it costs beside itself.

        Args:
            client: whose.
            began_s: when it began, s.
            ended_s: when it ended, s.
            seconds: for which the radio was in use for it alone.
            down_bits: that came.
            up_bits: that went.
        """
        radio, last = self._radios.of(client), self._last.get(client, -math.inf)
        self._last[client] = max(last, ended_s)
        joules = self._idle_w.item(client) * seconds
        joules += radio.transfer_j(seconds, down_bits, up_bits)
        return joules + radio.ready_j(began_s - last)
