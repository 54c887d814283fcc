"""FedCompass: clients get as many local steps as let a group of them finish together.

Li, Chaturvedi, He, Chen, Singh, Kindratenko, Huerta, Kim, Madduri, "FedCompass: Efficient
Cross-Silo Federated Learning on Heterogeneous Client Devices using a Computing Power-Aware
Scheduler", arXiv:2309.14675 (ICLR 2024), Algorithms 1 to 3. Where the paper leaves things open, the
rules are those of the authors' code (`CompassScheduler` and `FedCompassAggregator` of APPFL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fl.errors import ConfigError
from fl.strategies.drivers.events import EventDriven, Sent, Server, Update, at_least, positive
from fl.strategies.drivers.tasks import Task
from fl.strategies.staleness import Polynomial, StalenessWeight

_NEVER_AGAIN = -math.inf
_LEAST_S = 1e-9  # a task that took no time must not make a speed infinite


@dataclass(eq=False)
class Group:
    """Clients that should finish at the same time.

    Attributes:
        expected_s: T_exp, when they should; -infinity once nobody may join.
        latest_s: T_max, when the group stops waiting; -infinity once it has.
        working: nodes that have not answered.
        arrived: updates of those that have.
    """

    expected_s: float
    latest_s: float
    working: list[int]
    arrived: list[Update] = field(default_factory=list)

    @property
    def nodes(self) -> list[int]:
        """The clients, whether they have answered or not."""
        return self.working + [update.node for update in self.arrived]


class FedCompass(EventDriven):
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
    now, p_i = 1/n. The paper's Delta is x_0 - x, whence its minus.

    A client that fails, or whose task must be lost, leaves its group, and is assigned anew when it
    is available. If the lost update comes after that, it goes to the general buffer. The number of
    steps goes out as "local-steps".

    Args:
        num_clients: n.
        min_steps, max_steps: Qmin and Qmax.
        latest_time_factor: lambda, at least 1.
        alpha: server mixing weight in (0, 1].
        staleness: s.
        speed_momentum: weight in (0, 1] of the latest task in s_i.
        **events: arguments of `EventDriven`; a client that waits for its group keeps its slot.

    Raises:
        ConfigError: an argument is out of its range.
    """

    tells: ClassVar[Mapping[str, str]] = {"local-steps": "max_steps"}

    def __init__(
        self,
        *,
        num_clients: int,
        min_steps: int = 20,
        max_steps: int = 100,
        latest_time_factor: float = 1.5,
        alpha: float = 0.9,
        staleness: StalenessWeight | None = None,
        speed_momentum: float = 0.9,
        **events: Any,
    ) -> None:
        super().__init__(**events)
        at_least("num_clients", num_clients, 1)
        at_least("min_steps", min_steps, 1)
        at_least("max_steps", max_steps, min_steps)
        positive("latest_time_factor", latest_time_factor)
        if latest_time_factor < 1:
            raise ConfigError(
                f"latest_time_factor is {latest_time_factor}; it must be at least 1, or "
                "groups end before they are expected to"
            )
        for name, value in (("alpha", alpha), ("speed_momentum", speed_momentum)):
            if not 0 < value <= 1:
                raise ConfigError(f"{name} is {value}; it must be above 0 and at most 1")
        self.num_clients = num_clients
        self.min_steps = min_steps
        self.max_steps = max_steps
        self.latest_time_factor = latest_time_factor
        self.alpha = alpha
        self.staleness = staleness or Polynomial(0.5)
        self.speed_momentum = speed_momentum

    def begin(self, server: Server) -> None:
        """Forgets speeds, groups and buffer."""
        self.seconds_per_step: dict[int, float] = {}  # s_i
        self.groups: list[Group] = []
        self.group_of: dict[int, Group] = {}  # of clients at work in one, or waiting for it
        self.task_of: dict[int, Task[Sent]] = {}  # the last that a client was assigned
        self.buffer: list[Update] = []  # the general buffer

    # ---- what happens ----------------------------------------------------------------------------

    def dispatch(self, server: Server) -> None:
        """Assigns clients that are free: all at the start, later those that failed before."""
        slots = self.free_slots(server)
        if slots > 0:
            for node in server.sample(self._free(server), slots):
                self.assign(server, node)

    def free_slots(self, server: Server) -> int:
        """Returns how many clients may be given work."""
        free = len(self._free(server))
        if self.concurrency is None:
            return free
        waiting = sum(len(group.arrived) for group in self.groups)
        return min(free, self.concurrency - len(server.tasks) - waiting)

    def receive(self, server: Server, update: Update) -> None:
        """Applies a first update alone, and puts others into their group or the general buffer."""
        node = update.node
        self.measure(update)
        group = self.group_of.get(node)
        if update.task is not self.task_of[node]:
            self.buffer.append(update)
        elif group is None:
            self.aggregate(server, [update])
            self.assign(server, node)
        elif server.now > group.latest_s:
            self.buffer.append(update)
            self._leave(group, node)
            self.assign(server, node)
        else:
            group.working.remove(node)
            group.arrived.append(update)
            if not group.working:
                self.end(server, group)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Takes the client out of its group, which does not wait for it any more."""
        group = self.group_of.get(task.node)
        if group is not None:
            self._leave(group, task.node)
            if group.arrived and not group.working:
                self.end(server, group)

    def timer(self, server: Server) -> float:
        """Returns the first T_max."""
        return min((g.latest_s for g in self.groups if g.latest_s > _NEVER_AGAIN), default=math.inf)

    def tick(self, server: Server) -> None:
        """Ends the groups whose T_max has come."""
        for group in [g for g in self.groups if _NEVER_AGAIN < g.latest_s <= server.now]:
            self.end(server, group)

    # ---- Algorithm 1: the server -----------------------------------------------------------------

    def aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        """Moves the model along updates, all of them measured against the same version."""
        total = np.zeros_like(server.w)
        for update in updates:
            weight = self.alpha * self.staleness(server.staleness(update)) / self.num_clients
            total += np.float32(weight) * update.delta
        server.step(server.w + total, updates)

    def end(self, server: Server, group: Group) -> None:
        """Applies what a group has brought, and assigns its clients anew, the fastest first."""
        group.expected_s = group.latest_s = _NEVER_AGAIN
        arrived, group.arrived = group.arrived, []
        if not group.working:
            self.groups.remove(group)
        if not arrived:
            return  # whoever comes now is late
        updates, self.buffer = [*self.buffer, *arrived], []
        self.aggregate(server, updates)
        nodes = [update.node for update in arrived]
        for node in nodes:
            del self.group_of[node]
        for node in sorted(nodes, key=self.seconds_per_step.__getitem__):
            self.assign(server, node)

    # ---- Algorithms 2 and 3: the scheduler -------------------------------------------------------

    def measure(self, update: Update) -> None:
        """Updates s_i: seconds from message to answer, over the number of steps."""
        seconds = max(update.seconds, _LEAST_S)
        measured = seconds / update.task.memo.config["local-steps"]
        known = self.seconds_per_step.get(update.node, measured)
        m = self.speed_momentum
        self.seconds_per_step[update.node] = (1 - m) * known + m * measured

    def assign(self, server: Server, node: int) -> None:
        """Gives a client its number of steps, and a group if its speed is known."""
        steps = self.max_steps
        if node in self.seconds_per_step:
            group, steps = self.join(server.now, node) or self.create(server.now, node)
            self.group_of[node] = group
        (self.task_of[node],) = server.send([node], {"local-steps": steps})

    def join(self, now: float, node: int) -> tuple[Group, int] | None:
        """Puts a client into the group that lets it do the most steps; None if none fits it."""
        open_groups = [g for g in self.groups if g.expected_s > now]
        fitting = [(self.steps_until(g.expected_s, now, node), g) for g in open_groups]
        fitting = [(q, g) for q, g in fitting if self.min_steps <= q <= self.max_steps]
        if not fitting:
            return None
        steps, group = max(reversed(fitting), key=lambda pair: pair[0])  # of equals, the newest
        group.working.append(node)
        return group, steps

    def create(self, now: float, node: int) -> tuple[Group, int]:
        """Opens a group that should end when another one comes back after its next task."""
        pace = self.seconds_per_step
        returns = [
            g.latest_s + self.max_steps * min(pace[i] for i in g.nodes)
            for g in self.groups
            if g.latest_s > now
        ]
        fitting = [self.steps_until(time, now, node) for time in returns]
        steps = max((q for q in fitting if q <= self.max_steps), default=self.max_steps)
        steps = max(steps, self.min_steps)
        seconds = steps * pace[node]
        group = Group(now + seconds, now + self.latest_time_factor * seconds, [node])
        self.groups.append(group)
        return group, steps

    def steps_until(self, time: float, now: float, node: int) -> int:
        """Returns how many whole steps a client can do until a time."""
        # The last bit of a quotient must not cost a step that fits exactly.
        return math.floor((time - now) / self.seconds_per_step[node] + 1e-9)

    # ---- inside ----------------------------------------------------------------------------------

    def _free(self, server: Server) -> list[int]:
        return [node for node in server.tasks.idle() if node not in self.group_of]

    def _leave(self, group: Group, node: int) -> None:
        del self.group_of[node]
        group.working.remove(node)
        if not group.working and not group.arrived:
            self.groups.remove(group)
