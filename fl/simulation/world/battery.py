"""Batteries: what they hold, how they are charged, and when a client is too low to take part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fl.checks import fraction, is_a, not_negative, positive, share
from fl.errors import ConfigError
from fl.randomness import uniforms
from fl.simulation.world.availability import Availability
from fl.simulation.world.devices import Devices

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Battery:
    """The batteries of a fleet.

    The charge s, a share of the capacity E, changes by

        E ds/dt = plugged * P(s) - W        P(s) = charger_w                       for s < knee
                                                   charger_w (1 - s) / (1 - knee)  from there on

    W is the load: `other_w` and what the client's tasks draw. P is the law of constant current,
    then constant voltage, by which lithium cells are charged: without load the rest of the charge
    then decays with tau = (1 - knee) E / charger_w. The slope is continuous; charge is in [0, 1].

    A client is low from when its charge falls to `threshold` until it rises to `resume`. Then it is
    not available, and what it works on ends with a departure.

    The capacity is that of 4,000 mAh at 3.85 V, 4 * 3.85 * 3600 J; 20 % is the bound of many
    policies of federated learning, Android's low battery is 15 % (both from memory). The load of
    all else makes a full battery last for a day awake; 10 W at the cell, the knee at 80 % and the
    range of charges at first are our assumptions.

    Attributes:
        plugged: says who is plugged in when: "online" is plugged.
        capacity_j: E in J.
        capacities_j: by kind of device, in its place; infinity is a device on the mains.
        least_start, most_start: range of the charge at time 0, uniform.
        threshold: in [0, 1).
        resume: above the threshold, at most 1.
        charger_w: what reaches the cell, W.
        knee: in (0, 1).
        other_w: power of all that the device does besides, all the time, W.

    Raises:
        ConfigError: an argument is out of its range.
    """

    plugged: Availability
    capacity_j: float = 55440.0
    least_start: float = 0.2
    most_start: float = 1.0
    threshold: float = 0.2
    resume: float = 0.25
    charger_w: float = 10.0
    knee: float = 0.8
    other_w: float = 0.8
    capacities_j: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        is_a("plugged", self.plugged, Availability)
        positive("capacity_j", self.capacity_j)
        for kind, capacity_j in self.capacities_j.items():
            if capacity_j != math.inf:
                positive(f"capacities_j.{kind}", capacity_j)
        if not 0 <= self.least_start <= self.most_start <= 1:
            raise ConfigError(
                f"least_start is {self.least_start} and most_start {self.most_start}; they must "
                "satisfy 0 <= least_start <= most_start <= 1"
            )
        share("threshold", self.threshold)
        fraction("resume", self.resume)
        if not self.resume - self.threshold >= 1e-3:
            raise ConfigError(
                f"resume is {self.resume} and threshold {self.threshold}; resume must be above it, "
                "by 0.001 at least, or a client would come and go at once"
            )
        positive("charger_w", self.charger_w)
        positive("knee", self.knee)
        if not self.knee < 1:
            raise ConfigError(f"knee is {self.knee}; it must be above 0 and below 1")
        not_negative("other_w", self.other_w)

    @property
    def most(self) -> float:
        """The charge that an idle client which stays plugged in comes near; 0 if it rises never."""
        if self.charger_w <= self.other_w:
            return 0.0
        return 1.0 - self.other_w * (1 - self.knee) / self.charger_w

    def capacities(self, devices: Devices) -> Column:
        """Returns each client's capacity in J, shape (n,); infinity is the mains.

        Raises:
            ConfigError: there are capacities for kinds of device that there are not, or the devices
                are on the mains and not each kind has a capacity of its own.
        """
        for kind in self.capacities_j:
            if kind not in devices.kinds:
                raise ConfigError(
                    f"capacities_j.{kind}: the fleet has no such kind of device; it has "
                    f"{', '.join(devices.kinds)}"
                )
        without = [kind for kind in devices.kinds if kind not in self.capacities_j]
        if devices.mains and without:
            raise ConfigError(
                f"capacity_j is {self.capacity_j:g} J, but the fleet's devices "
                f"({', '.join(devices.kinds)}) are on the mains: leave battery out, choose a fleet "
                "of devices with batteries, as fleet=mobile, or give each kind its own, "
                f"+battery.capacities_j.{without[0]}=JOULES"
            )
        by_kind = [float(self.capacities_j.get(kind, self.capacity_j)) for kind in devices.kinds]
        return np.array(by_kind, dtype=np.float64).take(devices.kind)

    def first_charges(self, seed: int, num_clients: int) -> Column:
        """Returns the charges at time 0, from the streams (seed, "battery-charge", client)."""
        u = uniforms(seed, "battery-charge", np.arange(num_clients))
        return self.least_start + (self.most_start - self.least_start) * u

    def after(
        self,
        charge: Column,
        seconds: Column,
        load_w: Column,
        capacity_j: Column,
        plugged: NDArray[np.bool_],
    ) -> Column:
        """Returns charges after times in which loads and plugs stay as they are, shape (n,).

        Args:
            charge: in [0, 1], shape (n,), as all below.
            seconds: at least 0.
            load_w: W.
            capacity_j: E, finite.
            plugged: bool.
        """
        down = np.maximum(0.0, charge - load_w * seconds / capacity_j)
        if not plugged.any():
            return down
        rate = (self.charger_w - load_w) / capacity_j  # below the knee
        # Where the charge goes to above it, how fast; and when it passes the knee, if it does.
        tau = (1 - self.knee) * capacity_j / self.charger_w
        rest = 1 - load_w * tau / capacity_j
        above = (charge > self.knee) | ((charge == self.knee) & (rate > 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            rises = np.where(rate > 0, (self.knee - charge) / rate, np.inf)
            falls = np.where(rest < self.knee, (charge - rest) / (self.knee - rest), 1.0)
        falls = np.where(rest < self.knee, tau * _each(math.log, np.maximum(falls, 1.0)), np.inf)
        turn = np.where(above, falls, np.maximum(rises, 0.0))
        first, then = np.minimum(seconds, turn), np.maximum(0.0, seconds - turn)
        since = np.where(above, first, then)  # s above the knee
        start = np.where(above, charge, self.knee)
        curved = rest + (start - rest) * _each(math.exp, -since / tau)
        straight = np.where(above, self.knee + rate * then, charge + rate * first)
        stays_above = np.where(above, seconds <= turn, seconds > turn)
        up = np.clip(np.where(stays_above, curved, straight), 0.0, 1.0)
        return np.where(plugged, up, down)

    def seconds_until(
        self, charge: float, level: float, load_w: float, capacity_j: float, plugged: bool
    ) -> float:
        """Returns after how long a charge comes to a level; infinity if it never does.

        Args:
            charge: in [0, 1].
            level: in [0, 1].
            load_w: W.
            capacity_j: E.
            plugged: bool; it and the load stay as they are.
        """
        if charge == level:
            return 0.0
        rate = (self.charger_w * plugged - load_w) / capacity_j
        if not plugged or max(charge, level) <= self.knee:
            seconds = (level - charge) / rate if rate else -1.0
            return seconds if seconds > 0 else math.inf
        if min(charge, level) < self.knee:  # on both sides of it
            to_knee = self.seconds_until(charge, self.knee, load_w, capacity_j, plugged)
            return to_knee + self.seconds_until(self.knee, level, load_w, capacity_j, plugged)
        tau = (1 - self.knee) * capacity_j / self.charger_w
        rest = 1 - load_w * tau / capacity_j
        if level == rest or not (charge - rest) / (level - rest) > 1:
            return math.inf
        return tau * math.log((charge - rest) / (level - rest))


def _each(function: Callable[[float], float], values: Column) -> Column:
    # NumPy's functions of arrays are not `math`'s to the last bit, nor alike on all processors.
    return np.array([*map(function, values.tolist())], dtype=np.float64)
