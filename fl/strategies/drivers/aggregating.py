"""What drivers share that make one vector of several by an aggregator F."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from fl.aggregation import Aggregator, Mean
from fl.checks import at_least, read_if
from fl.errors import ConfigError
from fl.randomness import generator
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.events import EventDriven
from fl.strategies.drivers.events.server import Server
from fl.vectors.rows import Row

own_f = read_if(
    lambda a: a["f"] is None,
    "aggregator.f",
    "aggregator.rule.f",
    "aggregator.pre.*.f",
    only="{at}f counts instead",
)
"""Decorates a driver whose `f`, where it is set, counts instead of that of its aggregator."""


@own_f
class Aggregating(EventDriven):
    """Base of the drivers that may combine several updates by an aggregator F.

    An F that continues from its last result is given that: of the vectors of that name, which moved
    the model. One that wants a trusted update, or the vector of the node that aggregates, is given
    the server's own update (`Exchange.trusted`), which begins with the present model.

    Args:
        rule: what the method is.
        aggregator: F; None is the mean.
        f: how many Byzantine clients F is to tolerate, instead of what it says itself; None leaves
            it as it is.
        root_examples: how many examples the server holds itself, for an F that wants its update;
            None refuses such an F, where updates do not all begin with the present model.
        **events: arguments of `EventDriven`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        rule: Any,
        *,
        aggregator: Aggregator | None = None,
        f: int | None = None,
        root_examples: int | None = None,
        **events: Any,
    ) -> None:
        super().__init__(rule, **events)
        if root_examples is not None:
            at_least("root_examples", root_examples, 0)
        aggregator = Mean() if aggregator is None else aggregator
        self.aggregator = aggregator if f is None else aggregator.tolerating(f)
        self.root_examples = root_examples
        if self.wants_own_update and root_examples is None:
            raise ConfigError(
                f"aggregator is {self.aggregator.name}, which compares updates with the server's "
                "own, and here they did not all begin with the same model: use another aggregator, "
                "or a strategy with rounds"
            )

    @property
    def robust(self) -> bool:
        """Whether F is more than a mean."""
        return not isinstance(self.aggregator, Mean)

    @property
    def wants_own_update(self) -> bool:
        """Whether F is given the server's own update."""
        return self.aggregator.reference in ("trusted-update", "own-vector")

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        wanted = self.root_examples if self.wants_own_update else None
        looks = self.aggregator.name if self.robust else ""
        return replace(super().traits, root_examples=wanted, aggregator=looks)

    @property
    def unread(self) -> Mapping[str, str]:
        """Arguments that F does not read."""
        unread, name = {}, self.aggregator.name
        if self.root_examples is not None and not self.wants_own_update:
            unread["root_examples"] = f"{name} does without an own update"
        if not self.aggregator.has_f:
            unread["f"] = f"{name} has no number of Byzantine clients"
        return unread

    def begin(self, server: Server) -> None:
        """Forgets what F has made.

        Raises:
            ConfigError: F wants the server's own update, and there is none.
        """
        if self.wants_own_update and self.exchange.trusted is None:
            raise ConfigError(
                f"{self.aggregator.name} wants an update of the server's own data "
                f"({self.aggregator.reference}), and the server has none: run the strategy within "
                "an Exchange that has it, for example a fl.strategies.TrustedUpdate"
            )
        self.results: dict[str, Row] = {}  # F's last that moved a model, by name of the vectors
        self.latest: dict[str, Row] = {}  # F's of the step that is being made
        self.own: tuple[int, Row] | None = None  # the server's own update, and of which version

    def aggregate(
        self, server: Server, F: Aggregator, x: Row, weights: Any = None, name: str = ""
    ) -> Row:
        """Returns F of vectors, shape (d,), and notes it for the next step.

        Args:
            server: what the strategy sees.
            F: tolerates what is left to be tolerated.
            x: shape (n, d).
            weights: numbers of examples, shape (n,).
            name: of the vectors; "" is a model's own changes.
        """
        rng = self._rng(server, name)
        result = F(x, weights, rng, self._reference(server, x.shape[1], name))
        self.latest[name] = result
        return result

    def combined_by(self, server: Server, n: int, d: int) -> tuple[Any, ...] | None:
        """Returns F, its rng and its reference, for attackers; None if n vectors are too few."""
        try:
            self.aggregator.check(n)
        except ConfigError:
            return None
        name = server.name
        return self.aggregator, self._rng(server, name), self._reference(server, d, name)

    def _rng(self, server: Server, name: str) -> np.random.Generator:
        names = (name,) if name else ()
        return generator(self.seed, "aggregation", *names, server.version + 1)

    def _reference(self, server: Server, d: int, name: str) -> Row | None:
        """Returns the vector that F is given beside those of the clients, shape (d,)."""
        if self.aggregator.reference == "last-result":
            return self.results.get(name, np.zeros(d, np.float32))
        trusted = self.exchange.trusted
        if not self.wants_own_update or trusted is None:
            return None
        if name:
            raise ConfigError(
                f"{self.aggregator.name} wants the server's own update, and there is none for the "
                f"vectors {name!r} of {self.name}: use another aggregator"
            )
        if self.own is None or self.own[0] != server.version:
            told = {**server.config, **self.config(), "server-round": server.version + 1}
            own = trusted(server.version + 1, server.model.record(), ConfigRecord(told))
            self.own = (server.version, own)
        return self.own[1]
