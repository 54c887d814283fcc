"""What every hierarchy has: machines, who goes where, and what becomes of what fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fl.checks import boolean, is_a, not_negative, read_if, share
from fl.errors import ConfigError
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies.machine import AggregatorMachine

OnFailure = Literal["lost", "retry"]
"""What becomes of the part of an aggregator that died."""


@read_if(
    lambda a: a["failure"] > 0, "on_failure", "detection_s", only="none dies, as {at}failure is 0"
)
@read_if(
    lambda a: a["on_failure"] == "retry", "detection_s", only="only {at}on_failure=retry reads it"
)
@dataclass(frozen=True, kw_only=True)
class Hierarchy(ABC):
    """Aggregators between clients and the server, for rounds whose step is made of a weighted sum.

    Each aggregator adds up n_i x_i and n_i of what it is sent and hands both on. Clients' updates
    go to leaves, in the order in which they arrive; the sums of a machine's leaves to its middle;
    those of the machines to the top. A machine with one leaf has no middle, and one machine needs
    no further top.

    Attributes:
        machine: what all machines are.
        eager: an aggregator adds what arrives at once; lazy ones begin when all is there.
        failure: chance that an aggregator dies just before it hands on its sum, in [0, 1).
        on_failure: its part is "lost", or another one does it again ("retry"), from what the
            machine has kept.
        detection_s: until its death is noticed, s.

    Raises:
        ConfigError: an argument is out of its range.
    """

    machine: AggregatorMachine
    eager: bool = True
    failure: float = 0.0
    on_failure: OnFailure = "retry"
    detection_s: float = 1.0

    def __post_init__(self) -> None:
        is_a("machine", self.machine, AggregatorMachine)
        boolean("eager", self.eager)
        share("failure", self.failure)
        not_negative("detection_s", self.detection_s)
        if self.on_failure not in get_args(OnFailure):
            raise ConfigError(
                f"on_failure is {self.on_failure!r}; it must be one of "
                f"{', '.join(get_args(OnFailure))}"
            )

    @property
    @abstractmethod
    def machines(self) -> int:
        """How many machines have leaves."""

    @property
    def fan_in(self) -> int | None:
        """How many updates a leaf takes; None is all of its machine's."""
        return None

    @property
    def has_cloud(self) -> bool:
        """Whether the top is on a machine of its own, which is always there."""
        return False

    @property
    def always_on(self) -> bool:
        """Whether a machine has one aggregator, alive from the beginning of the run to its end."""
        return False

    @property
    def shared_memory(self) -> bool:
        """Whether aggregators of a machine hand each other what lies in memory, without a copy."""
        return False

    @property
    def planned(self) -> bool:
        """Whether aggregators are started at the beginning of a round, as many as expected."""
        return False

    @property
    def reuse(self) -> bool:
        """Whether an aggregator that has done its part takes any other."""
        return False

    @property
    def smoothing(self) -> float:
        """Weight of the past in the mean number of a machine's updates, in [0, 1)."""
        return 0.0

    @abstractmethod
    def place(self, client: int, assigned: Sequence[int]) -> int:
        """Returns the machine that an update goes to.

        Args:
            client: index of its client.
            assigned: how many updates of the round each machine has, shape (machines,).
        """

    def attached(self, fleet: Fleet) -> Fleet:
        """Returns a fleet whose clients' links end at the hierarchy.

        Raises:
            ConfigError: they cannot.
        """
        return fleet

    def relay_s(self, fleet: Fleet, sizes: Sequence[int]) -> float:
        """Returns how long what is sent takes from the top to the machines, s.

        Args:
            fleet: the clients, with the server's own link.
            sizes: bytes for each machine that something goes to.
        """
        return 0.0
