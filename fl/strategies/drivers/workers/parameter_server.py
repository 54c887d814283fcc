"""The driver of parameter servers: workers send gradients, and the first k of n make a step.

The rule (`fl.strategies.gradient_rule`) says how many are waited for and makes the step; how
workers and server meet is that of arXiv:2004.14696, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from fl.errors import ConfigError
from fl.strategies.drivers.combining import Combining
from fl.strategies.drivers.events.server import Sent, Server, Update
from fl.strategies.drivers.replies import not_reported
from fl.strategies.drivers.tasks import Task
from fl.strategies.event_rule import Combine
from fl.strategies.gradient_rule import GradientRule, Gradients

Policy = Literal["psw", "psi", "pull"]


class ParameterServer(Combining):
    """Synchronous iterations of the first k of n gradients.

    A worker contributes at most one gradient to an iteration; one of an older w is discarded.

    A worker's gradient is what one local step of learning rate 1 does, so clients run plain SGD
    (`client=sgd` without momentum), and their batch size is that of a gradient.

    Workers get w in one of three ways. They differ in what a worker does that still computes when
    the server has a new w:

    - "psw": w is pushed to all; the worker finishes, then takes the newest w.
    - "psi": w is pushed to all, and the worker drops what it is doing for it.
    - "pull": the worker finishes, then asks for w. That is as "psw", unless workers download while
      they compute (`prefetch` of the fleet): then what "psw" pushes is there when they have
      finished, and what is overtaken has been moved for nothing.

    A worker that fails, or does not answer within `timeout`, is out of the iteration. One for which
    no worker is left ends with the gradients it has; if it has none, all are asked again. Clients
    that come later are workers from then on.

    With an aggregator F, an iteration waits for as many gradients as F needs, if the rule wants
    fewer. Changes of the model are what F combines, -g_i.

    Args:
        rule: says for how many gradients an iteration waits, and makes the next model of them.
        policy: see above.
        root_examples: how many examples the server holds itself, for an F that wants its update.
        **combining: arguments of `Combining` but `concurrency` and `patience`; n is the number of
            clients that have been available so far, so `min_available_nodes` should be all of them.

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_timeout: ClassVar[bool] = True
    rules = GradientRule
    example = "BackupWorkers"
    rule: GradientRule
    tells: ClassVar[Mapping[str, Any]] = {"local-steps": 1, "lr": "rule.eta"}

    def __init__(
        self,
        rule: GradientRule,
        *,
        policy: Policy = "psw",
        root_examples: int = 100,
        **combining: Any,
    ) -> None:
        super().__init__(
            rule, concurrency=None, patience=None, root_examples=root_examples, **combining
        )
        if policy not in ("psw", "psi", "pull"):
            raise ConfigError(f"policy is {policy!r}; it must be 'psw', 'psi' or 'pull'")
        self.policy = policy

    @property
    def most(self) -> float:
        """The most updates that a step combines: as many as there are workers, but for some."""
        return math.inf

    def config(self) -> Mapping[str, Any]:
        """Returns what messages say beside the model: a step that is a gradient."""
        return {"local-steps": 1, "lr": 1.0}

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if so many workers do not send enough gradients for F."""
        if self.robust:
            self.check_aggregator(self.rule.combines(num_clients))

    @property
    def readers(self) -> Mapping[str, Any]:
        """The rule."""
        return {"rule": self.rule}

    def unusable(self, update: Update) -> str | None:
        """Refuses a worker that does not report what the rule reads."""
        lacking = not_reported(update.metrics, self.rule.reads)
        return lacking and f"it reports no finite {lacking!r}, which {self.name} reads"

    def begin(self, server: Server) -> None:
        """Counts the workers.

        Raises:
            ConfigError: they are too few for the rule, or for F.
        """
        super().begin(server)
        self.workers = sorted(server.tasks.nodes())
        self.check_clients(len(self.workers))
        self.least = self.fewest(len(self.workers))
        self.out: set[int] = set()  # of the iteration
        self.state = self.rule.init(server.w, len(self.workers))
        self.updates: list[Update] = []
        self.contributors: set[int] = set()
        self.published_s: dict[int, float] = {}  # by version, while a worker computes on it
        self.orders: dict[int, int] = {}

    def free_slots(self, server: Server) -> int:
        """Returns how many workers could be given the model."""
        done = self.contributors | self.out
        return sum(node not in done for node in server.tasks.idle())

    def dispatch(self, server: Server) -> None:
        """Publishes a new model, or gives the latest one to workers that are free."""
        self._enlarge(server)
        if not len(server.tasks) and not self.updates:
            self.out = set()
        if server.version not in self.published_s:
            self._publish(server)
        self._send(server, self._free(server))
        while not len(server.tasks) and self.updates:
            self._step(server)
            if server.version >= server.num_rounds:
                return
            self._publish(server)
            self._send(server, self._free(server))

    def receive(self, server: Server, update: Update) -> None:
        """Takes a gradient; the k-th makes a new model."""
        version = update.version
        self.orders[version] += 1
        since = server.now - self.published_s[version]
        self.state = self.rule.arrived(self.state, version, self.orders[version], since)
        if version != server.version:
            server.discard(update)
            return
        self.updates.append(update)
        self.contributors.add(update.node)
        if len(self.updates) >= max(self.state.k, self.least):
            self._step(server)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Leaves the worker out of the iteration."""
        if task.memo.version == server.version:
            self.out.add(task.node)

    def _enlarge(self, server: Server) -> None:
        if new := set(server.tasks.nodes()).difference(self.workers):
            self.workers = sorted(new.union(self.workers))
            self.state = self.rule.enlarged(self.state, len(self.workers))

    def _step(self, server: Server) -> None:
        self._enlarge(server)
        updates, self.updates = self.updates, []
        in_use = {task.memo.version for task in server.tasks}
        self.contributors, self.out = set(), set()

        def make(usable: Sequence[Update], combine: Combine | None) -> Any:
            gradients = Gradients(
                np.stack([-update.delta for update in usable]),
                [update.metrics for update in usable],
                combine and (lambda rows: -combine(-rows)),
            )
            state = self.rule.step(self.state, server.version, gradients, in_use)
            return state._replace(w=self.with_statistics(server, state.w))

        state = self.advance(server, updates, make)
        if state is not None:
            self.state = state._replace(w=server.w)

    def _publish(self, server: Server) -> None:
        in_flight = list(server.tasks)
        if self.policy == "psi":
            for task in in_flight:
                server.tasks.cancel(task)
        elif self.policy == "psw":
            computing: set[int] = set()
            for task in in_flight:
                if task.node in computing:
                    server.tasks.cancel(task)  # it waits behind another, and is overtaken
                computing.add(task.node)
        self.published_s[server.version], self.orders[server.version] = server.now, 0
        in_use = {task.memo.version for task in server.tasks} | {server.version}
        for version in self.published_s.keys() - in_use:
            del self.published_s[version], self.orders[version]
        if self.policy == "psw":
            here = set(server.tasks.nodes())
            busy = [node for node in self.workers if server.tasks.busy(node) and node in here]
            self._send(server, busy)

    def _free(self, server: Server) -> list[int]:
        free = set(server.tasks.idle()) - self.contributors - self.out
        return [node for node in self.workers if node in free]

    def _send(self, server: Server, nodes: Sequence[int]) -> None:
        server.send(nodes, self.config())
