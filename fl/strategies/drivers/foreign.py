"""Strategies of Flower's and of anybody's, as drivers.

They send and receive by themselves, through nothing but a `Grid`: so what comes between them and
their clients can only be put there, around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx, Result, Strategy

from fl.flower.grid_around import GridAround
from fl.flower.grid_view import Clock, Control, GridView
from fl.strategies.drivers.codec import Codec
from fl.strategies.drivers.driver import Driver, Traits, told_by
from fl.strategies.drivers.guarded import guarded


def driver_of(strategy: Strategy) -> Driver:
    """Returns the strategy itself if it is one of this project, else one that runs it."""
    return strategy if isinstance(strategy, Driver) else Foreign(strategy)


class Foreign(Driver):
    """Any strategy, run through an exchange; its own `start` runs, whatever it does.

    Flower's averaging strategies are put behind a guard (`Guarded`). Over compressed links the
    strategy is given a grid that encodes what it sends and decodes what it receives.

    Args:
        inner: the strategy; it sends and gets ordinary messages.
        arrays_key, config_key: names of the records in its messages.
    """

    def __init__(
        self, inner: Strategy, *, arrays_key: str = "arrays", config_key: str = "config"
    ) -> None:
        self.inner = inner
        self.arrays_key = arrays_key
        self.config_key = config_key

    @property
    def name(self) -> str:
        """What the inner strategy is called."""
        return str(getattr(self.inner, "name", type(self.inner).__name__))

    @property
    def evaluates_on_clients(self) -> bool:
        """Whether the inner strategy, as it is configured, sends `evaluate` messages."""
        return bool(getattr(self.inner, "fraction_evaluate", 0.0))

    def told(self) -> dict[str, tuple[str, Any]]:
        """Returns what the inner strategy writes into every message, if that is known."""
        tells = {"proximal-mu": "proximal_mu"} if isinstance(self.inner, FedProx) else {}
        return told_by(self.inner, tells)

    def cohort(self, num_clients: int) -> int:
        """Returns how many clients Flower's strategies select."""
        if not isinstance(self.inner, FedAvg):
            return num_clients
        share = int(self.inner.fraction_train * num_clients)
        return min(num_clients, max(share, self.inner.min_train_nodes))

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(forges=False, known=False)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Runs the strategy; arguments and result are those of its own `start`."""
        control = GridView(grid).control
        codec = self.exchange.codec(control, self.arrays_key, self.config_key)
        around = grid if codec is None else CodedGrid(grid, codec)
        return guarded(self.inner, self.exchange.layout).start(around, *args, **kwargs)

    def summary(self) -> None:
        """Logs the inner strategy's configuration."""
        self.inner.summary()


class CodedGrid(GridAround):
    """A grid whose messages pass a codec.

    Args:
        grid: carries the messages.
        codec: of the run.
    """

    def __init__(self, grid: Grid, codec: Codec) -> None:
        super().__init__(grid)
        self._codec = codec

    @property
    def clock(self) -> Clock:
        """The clock of the grid underneath."""
        return GridView(self.grid).clock

    @property
    def control(self) -> Control:
        """The control of the grid underneath."""
        return GridView(self.grid).control

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of the connected nodes."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages, encoded; returns their ids."""
        packed = self._codec.pack(list(messages))
        names = list(self.grid.push_messages([message for message, _ in packed]))
        self._codec.sent(names, packed)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there, decoded."""
        return [self._codec.open(reply) for reply in self.grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends messages, encoded, and returns their replies, decoded."""
        return self._codec.send_and_receive(self.grid, list(messages), timeout)
