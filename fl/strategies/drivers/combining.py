"""What drivers share that may combine several updates by an aggregator, outside of rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fl.aggregation import Aggregator, Dropped, Guard, Mean
from fl.checks import read_if
from fl.errors import ConfigError, NoStep
from fl.randomness import generator
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events import EventDriven, Server, Update
from fl.strategies.event_rule import Combine
from fl.vectors.rows import Row, is_finite


@read_if(
    lambda a: a["f"] is None,
    "aggregator.f",
    "aggregator.rule.f",
    "aggregator.pre.*.f",
    only="{at}f counts instead",
)
@read_if(
    lambda a: False,
    "aggregator.weighted",
    "aggregator.rule.weighted",
    only="here updates do not weigh by numbers of examples",
)
class Combining(EventDriven):
    """Base of drivers without rounds whose steps may be made of several updates.

    The updates of a step become one by the aggregator F: their mean, or a robust rule of the
    vectors that the method adds up. A forged update that is not finite never reaches F: it counts
    as one of the f that F tolerates, and is an event of the trace. Where more than f are such, F
    cannot work with so few, or its result is not finite, the model stays as it is.

    An attack that knows F forges when a step is made, with what honest clients contribute to that;
    others forge when an update arrives.

    Args:
        aggregator: F; None is the mean.
        f: how many Byzantine clients F is to tolerate, instead of what it says itself; None leaves
            it as it is.
        **events: arguments of `EventDriven`.

    Raises:
        ConfigError: an argument is out of its range; F compares updates with one of the server's
            own, which here would begin with another model than theirs.
    """

    def __init__(
        self, *, aggregator: Aggregator | None = None, f: int | None = None, **events: Any
    ) -> None:
        super().__init__(**events)
        aggregator = Mean() if aggregator is None else aggregator
        self.aggregator = aggregator if f is None else aggregator.tolerating(f)
        if self.aggregator.reference in ("trusted-update", "own-vector"):
            raise ConfigError(
                f"aggregator is {self.aggregator.name}, which compares updates with the server's "
                "own, and here they did not all begin with the same model: use another aggregator, "
                "or a strategy with rounds"
            )

    @property
    @abstractmethod
    def most(self) -> int:
        """The most updates that a step combines."""

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        several = self.most > 1
        return replace(super().traits, aggregates=several)

    @property
    def unread(self) -> Mapping[str, str]:
        """Arguments that F does not read."""
        if self.aggregator.has_f:
            return {}
        return {"f": f"{self.aggregator.name} has no number of Byzantine clients"}

    @property
    def robust(self) -> bool:
        """Whether F is more than a mean."""
        return not isinstance(self.aggregator, Mean)

    def check_aggregator(self) -> None:
        """Raises ConfigError if F cannot work with as many updates as a step has at the most."""
        if not self.robust:
            return
        if self.most == 1:
            raise ConfigError(
                f"aggregator is {self.aggregator.name}, and {self.name} steps by single updates, "
                "of which there is nothing to combine: leave it out, or use a strategy whose steps "
                "have several, such as fedbuff with a buffer_size above 1"
            )
        self.aggregator.check(self.most)

    def begin(self, server: Server) -> None:
        """Forgets what F has made."""
        self.results: dict[str, Row] = {}  # F's last, by model

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
    ) -> Any:
        """Makes the next version of the model.

        Args:
            server: what the method sees.
            updates: that have arrived for it.
            make: returns the rule's next state, from those that reach F, and F; None is the mean.
            polled: see `Server.step`.

        Returns:
            What `make` returned; None if the model stayed as it is.
        """
        usable = list(updates)
        made: dict[str, Row] = {}
        try:
            f = self._reach(server, usable)
            with np.errstate(over="ignore", invalid="ignore"):  # seen in the result
                state = make(usable, self._combine(server, f, made) if self.robust else None)
        except ConfigError as error:
            if not (self.robust or isinstance(error, NoStep)):
                raise
            for update in usable:
                server.discard(update)
            few = f"{len(usable)} of {len(updates)} updates: {error}"
            server.stay(error if isinstance(error, NoStep) else NoStep(few))
            return None
        # What F has made of statistics is what it lets clients change of them.
        if not server.step(state.w, usable, of_one_version=self.robust, polled=polled):
            return None
        self.results.update(made)
        return state

    def _reach(self, server: Server, usable: list[Update]) -> int:
        """Lets the updates be forged, leaves out what is none, and returns what is left of f.

        Raises:
            NoStep: more are left out than F tolerates, or all.
        """
        n, forging = len(usable), server.forging
        if forging is None or not n:
            return self.aggregator.tolerates(n)
        if self._forges_steps(server):
            usable[:] = forging.forged(server, usable, partial(self._known, server))
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

    def _combine(self, server: Server, f: int, made: dict[str, Row]) -> Combine:
        rule = self.aggregator.tolerating(f)

        def combine(y: Row) -> Row:
            rng = self._rng(server)
            result = rule(y, None, rng, self._reference(server, y.shape[1]))
            made[server.name] = result
            return result

        return combine

    def _known(self, server: Server, n: int, d: int) -> tuple[Any, ...] | None:
        """Returns F, its rng and its reference; None if n vectors are too few for it."""
        try:
            self.aggregator.check(n)
        except ConfigError:
            return None
        return self.aggregator, self._rng(server), self._reference(server, d)

    def _rng(self, server: Server) -> np.random.Generator:
        name = (server.name,) if server.name else ()
        return generator(self.seed, "aggregation", *name, server.version + 1)

    def _reference(self, server: Server, d: int) -> Row | None:
        if self.aggregator.reference != "last-result":
            return None
        return self.results.get(server.name, np.zeros(d, np.float32))

    def _forges_steps(self, server: Server) -> bool:
        forging = server.forging
        return forging is not None and forging.attack.knowledge == "aggregation"
