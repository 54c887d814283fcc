"""What strategies have in common that do not work in Flower's rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.errors import ConfigError

log = logging.getLogger("fl")


class NoRounds(Strategy):
    """A strategy with a `start` of its own. Whoever drives it in rounds instead is told.

    Attributes:
        reads_timeout: whether the `timeout` of `start` says how long a client may take. Methods in
            which clients answer at any time do not read it: see `fl.strategies.drivers.patience`.
    """

    reads_timeout: ClassVar[bool] = False

    def summary(self) -> None:
        """Logs the strategy's arguments."""
        log.info("%s: %s", type(self).__name__, vars(self))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Raises: there are no rounds."""
        raise self._no_rounds()

    def _no_rounds(self) -> ConfigError:
        return ConfigError(
            f"{type(self).__name__} has no rounds: call its start(grid=..., initial_arrays=...), "
            "and do not wrap it in a strategy that works in rounds"
        )
