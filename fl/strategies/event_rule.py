"""What an asynchronous server rule is: what it makes of each update, with explicit state.

A rule is a frozen dataclass of hyperparameters whose methods map a state and what happened to the
next state and a decision. The state is a named tuple whose field `w` is the model, so a rule can be
read like its algorithm box and tested without a grid:

    state = rule.init(w, p)
    state, updates, *_ = rule.receive(state, update, tau)    # wait for more, step, or discard
    state = rule.step(state, Arrivals(updates))              # the next version

`fl.strategies.Events` does everything else: who is asked and what is sent, slots, clients that are
late or fail, versions, staleness, which replies are usable, and how updates are combined.

Rules of servers that interrupt clients, instead of waiting for them, are `PollingRule`; their
driver is `fl.strategies.Polling`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fl.strategies.clusters import Clusters
from fl.vectors.rows import Row

Combine = Callable[[Row], Row]
"""F of vectors (n, d), shape (d,)."""


class Arrival(Protocol):
    """An update that has arrived."""

    @property
    def node(self) -> int:
        """Who sent it."""

    @property
    def x(self) -> Row:
        """The model that the client has made, x_i, shape (d,), float32."""

    @property
    def delta(self) -> Row:
        """How it changed the model it was sent, x_i - x_0, shape (d,), float32."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What the client was told beside the model."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What it reported."""

    @property
    def sent_s(self) -> float:
        """When it was sent the model, s."""

    @property
    def received_s(self) -> float:
        """When its update arrived, s."""


@dataclass(frozen=True, eq=False)
class Arrivals:
    """The updates that the next version is made of.

    Attributes:
        updates: n of them.
        weights: what the rule said that they weigh, 1 if it said nothing, n numbers.
        staleness: versions since those that they began with, tau_i, n whole numbers.
        intervals: between contributions of these clients, I_i as `Contributions` has it, n numbers;
            of a rule that `measures`.
        mean_interval: the mean client's, I.
        concurrency: C, most tasks in flight; None if all available clients work.
        available: clients there are.
        combine: F, by which the updates become one; None is their mean.
        statistics: places of what clients change but do not train, as statistics of normalisation
            layers. They are no directions.
        proxy_losses: from a model, shape (d,), to its losses on the server's proxy sets, of a rule
            that has `proxies`.
    """

    updates: Sequence[Arrival]
    weights: Sequence[float] = ()
    staleness: Sequence[int] = ()
    intervals: Sequence[float] = ()
    mean_interval: float = 0.0
    concurrency: int | None = None
    available: int = 0
    combine: Combine | None = None
    statistics: Sequence[slice] = ()
    proxy_losses: Callable[[Row], NDArray[np.float64]] = lambda _: np.empty(0)

    def __len__(self) -> int:
        """Returns n."""
        return len(self.updates)

    def __iter__(self) -> Iterator[Arrival]:
        """Returns the updates, in the order of their arrival."""
        return iter(self.updates)

    @property
    def only(self) -> Arrival:
        """The update, for a rule that steps by one at a time."""
        (update,) = self.updates
        return update

    def sum(self, a: Iterable[float], start: Row | None = None) -> Row:
        """Returns start + sum_i a_i delta_i, shape (d,), or start + n F(a_1 delta_1, ...).

        Args:
            a: n numbers.
            start: shape (d,); None is 0.
        """
        scaled = (np.float32(a_i) * u.delta for a_i, u in zip(a, self.updates, strict=True))
        return added(np.zeros_like(self.updates[0].x) if start is None else start, scaled, self)

    def without_statistics(self, vector: Row) -> Row:
        """Returns a vector of shape (d,) that is 0 where clients do not train."""
        if not self.statistics:
            return vector
        vector = vector.copy()
        for place in self.statistics:
            vector[place] = 0
        return vector

    def total(self, rows: Iterable[Row], centre: Row) -> Row:
        """Returns centre + sum_i y_i, shape (d,), or centre + n (centre + F(y_1 - centre, ...)).

        Args:
            rows: models y_i, n of shape (d,).
            centre: the server's, shape (d,).
        """
        return added(centre, rows, self, centre)


def added(start: Row, rows: Iterable[Row], updates: Arrivals, centre: Row | None = None) -> Row:
    """Returns start + sum_i y_i, shape (d,), or start + n (c + F(y_1 - c, ..., y_n - c)).

    The sum is taken in the order of the rows, one after the other, as a server does that need not
    keep them.

    Args:
        start: shape (d,).
        rows: y_i, n of shape (d,).
        updates: whose F counts.
        centre: c, shape (d,); None is 0.
    """
    if updates.combine is None:
        for row in rows:
            start = start + row
        return start
    listed = list(rows)
    if not listed:
        return start
    y = np.stack(listed)
    if centre is None:
        return start + np.float32(len(y)) * updates.combine(y)
    return start + np.float32(len(y)) * (centre + updates.combine(y - centre))


class Decision(NamedTuple):
    """What a rule makes of what has happened.

    Attributes:
        state: after it.
        apply: updates that the next version is made of; none of them is a version of the same
            model, and None is no version.
        weights: of these, for `Arrivals`; empty if there is nothing to say.
        discard: updates that will not be used.
        ask: clients that are sent the model at once, in this order.
    """

    state: Any
    apply: tuple[Arrival, ...] | None = None
    weights: tuple[float, ...] = ()
    discard: tuple[Arrival, ...] = ()
    ask: tuple[int, ...] = ()


class EventRule(ABC):
    """What a server does when an update arrives, and what a step is.

    Attributes:
        measures: whether `step` reads how often clients contribute.
        returns: whether who has answered is sent the next model before others are.
        server_flops: of a rule with `proxies`, the server's FLOP/s; None takes no time.
    """

    measures: ClassVar[bool] = False
    returns: ClassVar[bool] = False
    server_flops: float | None = None

    @property
    def customises(self) -> bool:
        """Whether each client is sent a model of its own."""
        return type(self).model_for is not EventRule.model_for

    @property
    def tells(self) -> Mapping[str, str]:
        """Keys of the messages' configuration, to the attributes that their values come from."""
        return {}

    @property
    def combines(self) -> int:
        """The most updates that a step combines."""
        return 1

    @property
    def proxies(self) -> tuple[int, int] | None:
        """Sets of labelled examples that the server has, and examples of each; None if none."""
        return None

    @property
    def period(self) -> float | None:
        """Seconds between ticks, from the beginning on; clients are then asked at ticks only."""
        return None

    @abstractmethod
    def init(self, w: Row, p: int) -> Any:
        """Returns the state before the first message.

        Args:
            w: the initial model, shape (d,).
            p: numbers that clients train, at most d.
        """

    def receive(self, state: Any, update: Arrival, tau: int) -> Decision:
        """Returns what becomes of an update that has arrived; a step by it alone, if nothing else.

        Args:
            state: before.
            update: which has arrived.
            tau: its staleness, in versions.
        """
        return Decision(state, apply=(update,))

    @abstractmethod
    def step(self, state: Any, updates: Arrivals) -> Any:
        """Returns the state with the next model.

        Args:
            state: as `receive`, `tick` or `failed` left it. It stays so if the next model is not
                finite.
            updates: those that were to be applied.
        """

    def due(self, state: Any) -> float:
        """Returns when `tick` is due next, s, of a rule without a `period`; infinity for never."""
        return math.inf

    def tick(self, state: Any, now: float) -> Decision:
        """Returns what is done when the time has come.

        Args:
            state: before.
            now: time in s.
        """
        return Decision(state)

    def failed(self, state: Any, node: int) -> Decision:
        """Returns what is done about a client whose task has ended without an update."""
        return Decision(state)

    def config(self) -> Mapping[str, Any]:
        """Returns what every message says beside the model."""
        return {}

    def assign(self, state: Any, node: int, now: float) -> tuple[Any, Mapping[str, Any]]:
        """Returns the state after a client is sent the model, and what the message says.

        Args:
            state: before.
            node: the client.
            now: time in s.
        """
        return state, self.config()

    def model_for(self, state: Any, node: int) -> Row:
        """Returns what a client is sent, shape (d,): by default the model, as all are."""
        w: Row = state.w
        return w

    def clusters(self, state: Any) -> Clusters | None:
        """Returns the models of the clusters and who uses which, of a rule that `customises`."""
        return None

    def holds(self, state: Any) -> Collection[int]:
        """Returns the clients that have answered and keep their slot, waiting for others."""
        return ()


class PollingRule(ABC):
    """What a server makes of its model and those of clients that it has interrupted."""

    @abstractmethod
    def init(self, w: Row, p: int) -> Any:
        """Returns the state before the first contact; see `EventRule.init`."""

    @abstractmethod
    def step(self, state: Any, answers: Answers) -> tuple[Any, Sequence[Row]]:
        """Returns the next state, and where each client that has answered goes on from.

        Args:
            state: of the last contact; not changed.
            answers: of at least one client; x_i - delta_i is where client i began.

        Returns:
            The state, and n models, shape (d,) each.
        """

    def refuses(self, metrics: Mapping[str, Any]) -> str | None:
        """Returns why an answer with these metrics is of no use, in words; None if it is."""
        return None


@dataclass(frozen=True, eq=False)
class Answers(Arrivals):
    """What the clients of a contact have made since their last.

    Attributes:
        starts: where they began, n of shape (d,).
        contacts: how often each has been contacted so far, answered or not, n whole numbers.
    """

    starts: Sequence[Row] = field(default=())
    contacts: Sequence[int] = ()
