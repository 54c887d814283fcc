"""What others send over the links of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl.checks import positive, read_if, share
from fl.errors import ConfigError
from fl.randomness import torch_seed
from fl.simulation.world.availability import ExponentialOnOff

_SHORTEST_S = 0.01


@read_if(lambda a: a["load"] > 0, "mean_on_s", "mean_off_s", only="{at}load above 0 reads it")
@dataclass(frozen=True)
class Background:
    """Traffic that takes a share of every shared link's capacity, always or now and then.

    Attributes:
        load: share of the capacity, in [0, 1), that it takes while it is there.
        mean_on_s: mean length of the times at which it is, s, exponential, of each link by itself,
            at least 0.01: what changes faster is a mean to every transfer. None is always.
        mean_off_s: mean length of the times between, likewise.

    Raises:
        ConfigError: a number is out of its range, or only one of the two means is given.
    """

    load: float = 0.0
    mean_on_s: float | None = None
    mean_off_s: float | None = None

    def __post_init__(self) -> None:
        share("load", self.load)
        if (self.mean_on_s is None) != (self.mean_off_s is None):
            raise ConfigError(
                f"mean_on_s is {self.mean_on_s} and mean_off_s is {self.mean_off_s}; give both, or "
                "neither for traffic that is always there"
            )
        for name in ("mean_on_s", "mean_off_s"):
            value = getattr(self, name)
            if value is not None:
                positive(name, value)
                if value < _SHORTEST_S:
                    raise ConfigError(
                        f"{name} is {value:g}; it must be at least {_SHORTEST_S} s, as transfers "
                        "see the mean of what changes faster: take load times the share of time"
                    )

    @property
    def mean_left(self) -> float:
        """The share of a link's capacity that it leaves, on average over time."""
        if self.mean_on_s is None or self.mean_off_s is None:
            return 1.0 - self.load
        return 1.0 - self.load * self.mean_on_s / (self.mean_on_s + self.mean_off_s)

    def of_links(self, num_links: int, seed: int) -> LinkLoad:
        """Returns the traffic on the links of a network, drawn from a run's seed."""
        periods = None
        if self.load > 0 and self.mean_on_s is not None and self.mean_off_s is not None:
            own = torch_seed(seed, "background-traffic")
            periods = ExponentialOnOff(num_links, own, self.mean_on_s, self.mean_off_s)
        return LinkLoad(self.load, periods)


@dataclass(frozen=True, eq=False)
class LinkLoad:
    """Background traffic on links that are numbered.

    Attributes:
        load: share of the capacity that it takes while it is there.
        periods: when it is there, link by link; None is always.
    """

    load: float
    periods: ExponentialOnOff | None

    def left(self, link: int, t: float) -> float:
        """Returns the share of a link's capacity that is left at a time."""
        there = self.periods is None or self.periods.is_online(link, t)
        return 1.0 - self.load if there else 1.0

    def next_change(self, link: int, t: float) -> float:
        """Returns when what is left of a link next changes, s; infinity for never."""
        return math.inf if self.periods is None else self.periods.next_change(link, t)
