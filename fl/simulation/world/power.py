"""Power states: how fast a device computes below its full power, and at which cap a task runs.

A cap is a share c of a device's full power, the highest that can be set; a curve says which share
of its full speed s(c) the device has under it, and which share of the power of full speed p(c) it
draws. A task takes 1 / s(c) times as long and p(c) / s(c) times the energy of computing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np

from fl.checks import fraction, positive, read_if, share, within_unit
from fl.errors import ConfigError

CAP_KEY = "power-cap"
"""The entry of a message's configuration by which a server chooses a task's cap."""

_GRID = 1000  # caps that are compared where a curve has no corners of its own

Choice = Literal["fixed", "cost", "deadline"]


@runtime_checkable
class Curve(Protocol):
    """What a cap does to a device.

    Attributes:
        least: the lowest cap that can be set, in (0, 1].
        candidates: caps among which a choice of least cost is made, ascending, the last is 1.
    """

    @property
    def least(self) -> float:
        """Returns the lowest cap."""
        ...

    @property
    def candidates(self) -> Sequence[float]:
        """Returns caps to choose from."""
        ...

    def speed(self, cap: float) -> float:
        """Returns s(c) in (0, 1], which does not fall with c, and is 1 at 1."""
        ...

    def draw(self, cap: float) -> float:
        """Returns p(c) in (0, 1], which is 1 at 1."""
        ...


@dataclass(frozen=True)
class Dvfs:
    """Voltage and frequency go down together, so that what is not static goes with their cube.

        c = static + (1 - static) s^3        hence  s = ((c - static) / (1 - static))^(1/3), p = c

    Dynamic power of CMOS is C V^2 f (Burd and Brodersen, "Processor Design for Portable Systems",
    J. VLSI Signal Processing 13, 1996), with V in proportion to f; the work is taken to be bound by
    the clock. Its energy per work, static / s + (1 - static) s^2, is least at
    s* = (static / (2 (1 - static)))^(1/3), below which a slower clock costs more.

    Attributes:
        static: share of full power that does not depend on the clock, in [0, 1).
        least_speed: of the slowest clock, in (0, 1].

    Raises:
        ConfigError: an argument is out of its range.
    """

    static: float = 0.2
    least_speed: float = 0.3

    def __post_init__(self) -> None:
        share("curve.static", self.static)
        fraction("curve.least_speed", self.least_speed)

    @property
    def least(self) -> float:
        """Returns the cap of the slowest clock."""
        return self.static + (1 - self.static) * self.least_speed**3

    @property
    def candidates(self) -> Sequence[float]:
        """Returns the caps of clocks that are evenly spaced."""
        speeds = np.linspace(self.least_speed, 1.0, _GRID)
        return [float(c) for c in self.static + (1 - self.static) * speeds[:-1] ** 3] + [1.0]

    def speed(self, cap: float) -> float:
        """Returns s(c)."""
        if cap >= 1:
            return 1.0
        return float(((cap - self.static) / (1 - self.static)) ** (1 / 3))

    def draw(self, cap: float) -> float:
        """Returns c."""
        return min(cap, 1.0)


@dataclass(frozen=True)
class MeasuredCurve:
    """Speed and power as they were measured at several caps, linear in between.

    Attributes:
        caps: shares of the highest limit, ascending, the last is 1.
        speeds: shares of the speed at the highest limit, that do not fall, the last is 1.
        draws: shares of the power drawn at the highest limit, likewise.

    Raises:
        ConfigError: they are not.
    """

    caps: Sequence[float]
    speeds: Sequence[float]
    draws: Sequence[float]

    def __post_init__(self) -> None:
        n = len(self.caps)
        if n < 2 or len(self.speeds) != n or len(self.draws) != n:
            raise ConfigError(
                f"curve has {n} caps, {len(self.speeds)} speeds and {len(self.draws)} draws; it "
                "must have as many of each, at least 2"
            )
        for name in ("caps", "speeds", "draws"):
            column = getattr(self, name)
            for value in column:
                fraction(f"curve.{name}", value)
            falls = np.diff(column) < 0 if name != "caps" else np.diff(column) <= 0
            if falls.any() or column[-1] != 1:
                rises = "rise" if name == "caps" else "not fall"
                raise ConfigError(
                    f"curve.{name} is {list(column)}; it must {rises}, and end with 1, as shares "
                    "of what there is at the highest limit"
                )

    @property
    def least(self) -> float:
        """Returns the lowest cap that was measured."""
        return float(self.caps[0])

    @property
    def candidates(self) -> Sequence[float]:
        """Returns the caps that were measured."""
        return list(map(float, self.caps))

    def speed(self, cap: float) -> float:
        """Returns s(c)."""
        return self._at(self.speeds, cap)

    def draw(self, cap: float) -> float:
        """Returns p(c)."""
        return self._at(self.draws, cap)

    def _at(self, column: Sequence[float], cap: float) -> float:
        if cap >= 1:
            return 1.0
        i = min(max(bisect_right(self.caps, cap) - 1, 0), len(self.caps) - 2)
        part = (cap - self.caps[i]) / (self.caps[i + 1] - self.caps[i])
        return float(column[i] + part * (column[i + 1] - column[i]))


class PowerState(NamedTuple):
    """At what power a task runs.

    Attributes:
        cap: c.
        speed: s(c).
        draw: p(c).
    """

    cap: float
    speed: float
    draw: float


def cost_of(curve: Curve, cap: float, eta: float) -> float:
    """Returns what a cap costs for each second that the work takes at full speed.

        (eta p(c) + 1 - eta) / s(c)

    That is eta times the energy, in that of full power, and 1 - eta times the time, in that at full
    speed, valued at full power: the cost of Zeus (arXiv:2208.06102, equation 2), which divided by
    the time of full speed and the highest power is this where full speed draws the highest power.

    Args:
        curve: of the device.
        cap: c.
        eta: weight of energy, in [0, 1].
    """
    return (eta * curve.draw(cap) + 1 - eta) / curve.speed(cap)


def cheapest_cap(curve: Curve, eta: float) -> float:
    """Returns the cap of least `cost_of` among a curve's candidates, the highest of equal ones."""
    return min(reversed(curve.candidates), key=lambda cap: cost_of(curve, cap, eta))


@read_if(lambda a: a["choice"] == "cost", "eta", only="{at}choice=cost reads it")
@read_if(lambda a: a["choice"] == "deadline", "within_s", only="{at}choice=deadline reads it")
@dataclass(frozen=True)
class Power:
    """At what power the clients of a fleet compute.

    A message whose configuration has "power-cap" is worked on at that cap, within what the curve
    allows; of others, `choice` says:

    - fixed: `cap`;
    - cost: the cap of least cost, see `cost_of`, at most `cap`;
    - deadline: the lowest cap with which the task computes for at most `within_s`, at most `cap`,
      and not below the cap of least energy, from which on a lower one costs more. It is known when
      the task begins to compute; work that is planned by time is planned at `cap`.

    Attributes:
        curve: what a cap does.
        cap: share of full power.
        caps: by kind of device, in its place.
        choice: how a task's cap is chosen.
        eta: weight of energy, in [0, 1].
        within_s: time to compute, s.

    Raises:
        ConfigError: an argument is out of its range.
    """

    curve: Curve
    cap: float = 1.0
    choice: Choice = "fixed"
    eta: float = 0.5
    within_s: float = 60.0
    caps: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.curve, Curve):
            raise ConfigError(
                f"curve is {self.curve!r:.80}; it must have least, candidates, speed and draw, "
                "such as fl.simulation.world.power.Dvfs"
            )
        if self.choice not in get_args(Choice):
            choices = ", ".join(get_args(Choice))
            raise ConfigError(f"choice is {self.choice!r}; it must be one of {choices}")
        within_unit("eta", self.eta)
        positive("within_s", self.within_s)
        named = {f"caps.{kind}": cap for kind, cap in self.caps.items()}
        for name, cap in {"cap": self.cap, **named}.items():
            fraction(name, cap)
            if cap < self.curve.least:
                raise ConfigError(
                    f"{name} is {cap}; it must be at least {self.curve.least:.4g}, the lowest that "
                    "the curve allows"
                )

    def check_kinds(self, kinds: Sequence[str]) -> None:
        """Raises ConfigError if caps are for kinds of device that a fleet has not."""
        for kind in self.caps:
            if kind not in kinds:
                raise ConfigError(
                    f"caps.{kind}: the fleet has no such kind of device; it has {', '.join(kinds)}"
                )

    def highest(self, kind: str) -> float:
        """Returns the cap of a kind of device."""
        return float(self.caps.get(kind, self.cap))

    def state(self, kind: str, seconds: float | None, asked: float | None = None) -> PowerState:
        """Returns at what power a task runs.

        Args:
            kind: of the device.
            seconds: that the task computes at full speed; None if that is not known yet.
            asked: the cap that the server chose; None if it has not.
        """
        curve, cap = self.curve, self.highest(kind)
        if asked is not None:
            cap = min(max(asked, curve.least), 1.0)
        elif self.choice == "cost":
            cap = min(cap, self._cheapest)
        elif self.choice == "deadline" and seconds is not None:
            cap = max(min(cap, self._frugal), min(cap, self._slowest(seconds)))
        return PowerState(cap, curve.speed(cap), curve.draw(cap))

    @cached_property
    def _cheapest(self) -> float:
        return cheapest_cap(self.curve, self.eta)

    @cached_property
    def _frugal(self) -> float:
        """The cap of least energy."""
        return cheapest_cap(self.curve, 1.0)

    def _slowest(self, seconds: float) -> float:
        """Returns the lowest cap with which so many seconds at full speed take `within_s`."""
        needed = seconds / self.within_s
        if needed >= 1:
            return 1.0
        low, high = self.curve.least, 1.0
        if self.curve.speed(low) >= needed:
            return low
        while high - low > 1e-12:  # a curve rises, and may be anybody's
            middle = (low + high) / 2
            low, high = (middle, high) if self.curve.speed(middle) < needed else (low, middle)
        return high


def asked_cap(value: object, where: str = f"a message's {CAP_KEY}") -> float:
    """Returns the cap that a message asks for.

    Args:
        value: what it says.
        where: it says so, for the message.

    Raises:
        ConfigError: it is no number in (0, 1].
    """
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (right and 0 < value <= 1):  # type: ignore[operator]
        raise ConfigError(
            f"{where} is {value!r:.80}; it must be a share of full power, above 0 and at most 1"
        )
    return float(value)  # type: ignore[arg-type]
