"""FedCompass: clients get as many local steps as let a group of them finish together.

Li, Chaturvedi, He, Chen, Singh, Kindratenko, Huerta, Kim, Madduri, "FedCompass: Efficient
Cross-Silo Federated Learning on Heterogeneous Client Devices using a Computing Power-Aware
Scheduler", arXiv:2309.14675 (ICLR 2024), Algorithms 1 to 3. Where the paper leaves things open, the
rules are those of the authors' code (`CompassScheduler` and `FedCompassAggregator` of APPFL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fl.checks import at_least, fraction, positive
from fl.errors import ConfigError
from fl.strategies.event_rule import Arrival, Arrivals, Decision, EventRule
from fl.strategies.staleness import Polynomial, StalenessWeight
from fl.vectors.rows import Row

_NEVER_AGAIN = -math.inf
_LEAST_S = 1e-9  # a task that took no time must not make a speed infinite


class Group(NamedTuple):
    """Clients that should finish at the same time.

    Attributes:
        expected_s: T_exp, when they should; -infinity once nobody may join.
        latest_s: T_max, when the group stops waiting; -infinity once it has.
        working: clients that have not answered.
        arrived: updates of those that have.
    """

    expected_s: float
    latest_s: float
    working: tuple[int, ...]
    arrived: tuple[Arrival, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """The clients, whether they have answered or not."""
        return self.working + tuple(update.node for update in self.arrived)

    def without(self, node: int) -> Group:
        """Returns the group when it does not wait for a client any more."""
        return self._replace(working=tuple(i for i in self.working if i != node))


class Compass(NamedTuple):
    """What server and scheduler know.

    Attributes:
        w: the model, shape (d,).
        seconds_per_step: s_i of clients that have answered.
        groups: in the order in which they were created.
        asked_s: when each client was last given work, s.
        buffer: the general buffer.
    """

    w: Row
    seconds_per_step: Mapping[int, float]
    groups: tuple[Group, ...]
    asked_s: Mapping[int, float]
    buffer: tuple[Arrival, ...] = ()

    def group_of(self, node: int) -> Group | None:
        """Returns the group of a client that is at work in one, or waits for it."""
        return next((group for group in self.groups if node in group.nodes), None)

    def with_group(self, old: Group, new: Group) -> Compass:
        """Returns the state after a group has changed; one without clients is gone."""
        kept = [new if group is old else group for group in self.groups]
        return self._replace(groups=tuple(group for group in kept if group.nodes))


@dataclass(frozen=True)
class FedCompass(EventRule):
    """Semi-asynchronous training by the authors' Compass scheduler.

    Client i takes about s_i seconds a step, the moving average of what its tasks took from message
    to answer. At time t it is assigned

    - to *join* the group g with the most steps q = floor((T_exp(g) - t) / s_i) in [Qmin, Qmax], so
      that it finishes with that group; or else
    - to *create* a group, with Q steps that end when some group g is likely to come back once more:
      the largest floor((T_max(g) + Qmax min_j s_j - t) / s_i) not above Qmax, j in g, raised to
      Qmin; Qmax if there is none. Then T_exp = t + Q s_i and T_max = t + lambda Q s_i.

    A client's first update is applied alone. Later it waits for its group, which ends when all have
    answered, or at T_max; an update that comes later than that goes to a general buffer, and its
    client at once to work. When a group ends,

        w <- w + sum_i alpha s(tau_i) p_i (x_i - x_0,i)

    over the group's updates and the general buffer, x_0,i what client i was sent, tau_i counted
    now, p_i = 1/n. The paper's Delta is x_0 - x, whence its minus. With an aggregator F the sum of
    k updates is k F(alpha s(tau_1) p_1 Delta_1, ...).

    A client that fails, or whose task must be lost, leaves its group, and is assigned anew when it
    is available. If the lost update comes after that, it goes to the general buffer. The number of
    steps goes out as "local-steps". A client that waits for its group keeps its slot.

    Attributes:
        num_clients: n.
        min_steps, max_steps: Qmin and Qmax.
        latest_time_factor: lambda, at least 1.
        alpha: server mixing weight in (0, 1].
        staleness: s.
        speed_momentum: weight in (0, 1] of the latest task in s_i.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    num_clients: int
    min_steps: int = 20
    max_steps: int = 100
    latest_time_factor: float = 1.5
    alpha: float = 0.9
    staleness: StalenessWeight = field(default_factory=Polynomial)
    speed_momentum: float = 0.9

    def __post_init__(self) -> None:
        at_least("num_clients", self.num_clients, 1)
        at_least("min_steps", self.min_steps, 1)
        at_least("max_steps", self.max_steps, self.min_steps)
        positive("latest_time_factor", self.latest_time_factor)
        if self.latest_time_factor < 1:
            raise ConfigError(
                f"latest_time_factor is {self.latest_time_factor}; it must be at least 1, or "
                "groups end before they are expected to"
            )
        fraction("alpha", self.alpha)
        fraction("speed_momentum", self.speed_momentum)

    @property
    def tells(self) -> Mapping[str, str]:
        """The first number of steps is Qmax."""
        return {"local-steps": "max_steps"}

    @property
    def combines(self) -> int:
        """Returns n: all clients may be in one group."""
        return self.num_clients

    def init(self, w: Row, p: int) -> Compass:
        """Returns the state without speeds, groups and buffer."""
        return Compass(w, {}, (), {})

    # ---- Algorithm 1: the server -----------------------------------------------------------------

    def receive(self, state: Compass, update: Arrival, tau: int) -> Decision:
        """Applies a first update alone, and puts others into their group or the general buffer."""
        node, now = update.node, update.received_s
        state = self.measure(state, update)
        group = state.group_of(node)
        buffered = (*state.buffer, update)
        if update.sent_s < state.asked_s[node]:  # its task was lost, and it has had another since
            return Decision(state._replace(buffer=buffered))
        if group is None:
            return Decision(state, apply=(update,), ask=(node,))
        if now > group.latest_s:
            state = state.with_group(group, group.without(node))._replace(buffer=buffered)
            return Decision(state, ask=(node,))
        new = group.without(node)._replace(arrived=(*group.arrived, update))
        state = state.with_group(group, new)
        return Decision(state) if new.working else self.end(state, new)

    def failed(self, state: Compass, node: int) -> Decision:
        """Takes the client out of its group, which does not wait for it any more."""
        group = state.group_of(node)
        if group is None:
            return Decision(state)
        new = group.without(node)
        state = state.with_group(group, new)
        return Decision(state) if new.working or not new.arrived else self.end(state, new)

    def due(self, state: Compass) -> float:
        """Returns the first T_max."""
        return min(
            (g.latest_s for g in state.groups if g.latest_s > _NEVER_AGAIN), default=math.inf
        )

    def tick(self, state: Compass, now: float) -> Decision:
        """Ends the first group whose T_max has come."""
        return self.end(state, next(g for g in state.groups if _NEVER_AGAIN < g.latest_s <= now))

    def end(self, state: Compass, group: Group) -> Decision:
        """Applies what a group has brought, and assigns its clients anew, the fastest first."""
        arrived = group.arrived
        state = state.with_group(group, Group(_NEVER_AGAIN, _NEVER_AGAIN, group.working))
        if not arrived:
            return Decision(state)  # whoever comes now is late
        nodes = sorted((u.node for u in arrived), key=state.seconds_per_step.__getitem__)
        return Decision(
            state._replace(buffer=()), apply=(*state.buffer, *arrived), ask=tuple(nodes)
        )

    def step(self, state: Compass, updates: Arrivals) -> Compass:
        """Moves the model along updates, all of them measured against the same version."""
        a = [self.alpha * self.staleness(tau) / self.num_clients for tau in updates.staleness]
        return state._replace(w=state.w + updates.sum(a))

    # ---- Algorithms 2 and 3: the scheduler -------------------------------------------------------

    def measure(self, state: Compass, update: Arrival) -> Compass:
        """Updates s_i: seconds from message to answer, over the number of steps."""
        seconds = max(update.received_s - update.sent_s, _LEAST_S)
        measured = seconds / update.config["local-steps"]
        known = state.seconds_per_step.get(update.node, measured)
        m = self.speed_momentum
        pace = (1 - m) * known + m * measured
        return state._replace(seconds_per_step={**state.seconds_per_step, update.node: pace})

    def assign(self, state: Compass, node: int, now: float) -> tuple[Compass, Mapping[str, Any]]:
        """Gives a client its number of steps, and a group if its speed is known."""
        steps = self.max_steps
        if node in state.seconds_per_step:
            state, steps = self.join(state, node, now) or self.create(state, node, now)
        state = state._replace(asked_s={**state.asked_s, node: now})
        return state, {"local-steps": steps}

    def join(self, state: Compass, node: int, now: float) -> tuple[Compass, int] | None:
        """Puts a client into the group that lets it do the most steps; None if none fits it."""
        pace = state.seconds_per_step[node]
        open_groups = [g for g in state.groups if g.expected_s > now]
        fitting = [(steps_until(g.expected_s, now, pace), g) for g in open_groups]
        fitting = [(q, g) for q, g in fitting if self.min_steps <= q <= self.max_steps]
        if not fitting:
            return None
        steps, group = max(reversed(fitting), key=lambda pair: pair[0])  # of equals, the newest
        return state.with_group(group, group._replace(working=(*group.working, node))), steps

    def create(self, state: Compass, node: int, now: float) -> tuple[Compass, int]:
        """Opens a group that should end when another one comes back after its next task."""
        pace = state.seconds_per_step
        returns = [
            g.latest_s + self.max_steps * min(pace[i] for i in g.nodes)
            for g in state.groups
            if g.latest_s > now
        ]
        fitting = [steps_until(time, now, pace[node]) for time in returns]
        steps = max((q for q in fitting if q <= self.max_steps), default=self.max_steps)
        steps = max(steps, self.min_steps)
        seconds = steps * pace[node]
        group = Group(now + seconds, now + self.latest_time_factor * seconds, (node,))
        return state._replace(groups=(*state.groups, group)), steps

    def holds(self, state: Compass) -> tuple[int, ...]:
        """Returns the clients that wait for their group."""
        return tuple(update.node for group in state.groups for update in group.arrived)


def steps_until(time: float, now: float, seconds_per_step: float) -> int:
    """Returns how many whole steps a client can do until a time."""
    # The last bit of a quotient must not cost a step that fits exactly.
    return math.floor((time - now) / seconds_per_step + 1e-9)
