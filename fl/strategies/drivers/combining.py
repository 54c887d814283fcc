"""What drivers share that may combine several updates by an aggregator, outside of rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from fl.aggregation import Dropped, Guard
from fl.checks import read_if
from fl.errors import ConfigError, NoStep
from fl.strategies.clusters import Clusters
from fl.strategies.drivers.aggregating import Aggregating
from fl.strategies.drivers.events.server import Server, Update
from fl.strategies.event_rule import Combine
from fl.vectors.rows import Row, is_finite


@read_if(
    lambda a: False,
    "aggregator.weighted",
    "aggregator.rule.weighted",
    only="here updates do not weigh by numbers of examples",
)
class Combining(Aggregating):
    """Base of drivers without rounds whose steps may be made of several updates.

    The updates of a step become one by the aggregator F: their mean, or a robust rule of the
    vectors that the method adds up. A forged update that is not finite never reaches F: it counts
    as one of the f that F tolerates, and is an event of the trace. Where more than f are such, F
    cannot work with so few, or its result is not finite, the model stays as it is.

    An attack that knows F forges when a step is made, with what honest clients contribute to that;
    others forge when an update arrives.

    Args:
        **aggregating: arguments of `Aggregating`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    @property
    @abstractmethod
    def most(self) -> float:
        """The most updates that a step combines; infinity if the clients have to be known first."""

    def check_aggregator(self, n: int) -> None:
        """Raises ConfigError if F cannot work with n updates, which a step has at the most."""
        if not self.robust:
            return
        if n == 1:
            raise ConfigError(
                f"aggregator is {self.aggregator.name}, and {self.name} steps by single updates, "
                "of which there is nothing to combine: leave it out, or have a step combine "
                "several, by a larger strategy.rule.buffer_size or strategy.contacted, or a "
                "smaller strategy.rule.backup"
            )
        self.aggregator.check(n)

    def fewest(self, most: int) -> int:
        """Returns how few updates F can work with, of at most so many; an F but the mean with 2."""
        for n in range(1 + self.robust, most):
            with suppress(ConfigError):
                self.aggregator.check(n)
                return n
        return most

    def as_sent(self, server: Server, update: Update) -> Update | None:
        """Returns an update as it reaches the server; who knows F forges when a step is made."""
        return update if self._forges_steps(server) else super().as_sent(server, update)

    def advance(
        self,
        server: Server,
        updates: Sequence[Update],
        make: Callable[[Sequence[Update], Combine | None], Any],
        *,
        polled: bool = False,
        clusters: Callable[[Any], Clusters | None] = lambda _: None,
    ) -> Any:
        """Makes the next version of the model.

        Args:
            server: what the method sees.
            updates: that have arrived for it.
            make: returns the rule's next state, from those that reach F, and F; None is the mean.
            polled: see `Server.step`.
            clusters: returns the models of the clusters in a state, if there are some.

        Returns:
            What `make` returned; None if the model stayed as it is.
        """
        usable = list(updates)
        self.latest = {}
        try:
            f = self._reach(server, usable)
            with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
                state = make(usable, self._combine(server, f) if self.robust else None)
        except ConfigError as error:
            if not (self.robust or isinstance(error, NoStep)):
                raise
            for update in usable:
                server.discard(update)
            few = f"{len(usable)} of {len(updates)} updates: {error}"
            server.stay(error if isinstance(error, NoStep) else NoStep(few))
            return None
        # What F has made of statistics is what it lets clients change of them.
        of = clusters(state)
        robust = self.robust
        if not server.step(state.w, usable, of_one_version=robust, polled=polled, clusters=of):
            return None
        self.results.update(self.latest)
        return state

    def with_statistics(self, server: Server, w: Row) -> Row:
        """Returns a model with the statistics of normalisation layers moved by F's change.

        They are no directions, and do not go by a learning rate.

        Args:
            server: what the method sees; F has just combined the clients' changes.
            w: the next model, shape (d,).
        """
        if server.name not in self.latest or not server.model.layout.statistics:
            return w
        w, change = w.copy(), self.latest[server.name]
        for entry in server.model.layout.statistics:
            place = slice(entry.offset, entry.offset + entry.size)
            w[place] = server.w[place] + change[place]
        return w

    def _reach(self, server: Server, usable: list[Update]) -> int:
        """Lets the updates be forged, leaves out what is none, and returns what is left of f.

        Raises:
            NoStep: more are left out than F tolerates, or all.
        """
        n, forging = len(usable), server.forging
        if forging is None or not n:
            return self.aggregator.tolerates(n)
        if self._forges_steps(server):
            usable[:] = forging.forged(server, usable, partial(self.combined_by, server))
        if not self.robust and usable:
            return 0
        refused = [Dropped(i, "no payload holds it") for i in range(n - len(usable))]
        for update in list(usable):
            if not is_finite(update.x):
                usable.remove(update)
                server.reject(update)
                refused.append(Dropped(len(refused), "not finite", diverged=True))
        guard = Guard(self.aggregator.tolerates(n))
        guard.check(refused, n)
        return max(0, guard.f - len(refused))

    def _combine(self, server: Server, f: int) -> Combine:
        F = self.aggregator.tolerating(f)
        return lambda y: self.aggregate(server, F, y, name=server.name)

    def _forges_steps(self, server: Server) -> bool:
        """Returns whether what is sent waits for the others of a step, as it depends on F."""
        forging = server.forging
        return forging is not None and forging.attack.knowledge == "aggregation" and self.most > 1
