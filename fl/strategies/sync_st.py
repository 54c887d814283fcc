"""Sync-ST: several models trained at once, in common rounds; what FedAST is compared with.

Askin, Sharma, Joe-Wong, Joshi, "FedAST: Federated Asynchronous Simultaneous Training",
arXiv:2406.00302 (UAI 2024); the rules are those of the authors' code (askinb/FedAST).
"""

from __future__ import annotations

from typing import Any, ClassVar

from fl.clients.app.task_app import TASK_KEY
from fl.strategies.drivers.events import Sent, Server, Update, at_least
from fl.strategies.drivers.simultaneous import Learning, Simultaneous, apportion
from fl.strategies.drivers.tasks import Task


class SyncST(Simultaneous):
    """Rounds in which disjoint groups of clients train the models.

    A round's clients are drawn without replacement, as many as there are requests (`concurrency`)
    or available clients, and dealt to the tasks in proportion to their R. When every task has its
    updates, w_m <- w_m + eta mean_i (x_i - w_m) for all of them. A task takes all updates of its
    clients that do not fail, or the first few, whose number is `first`; then its other clients are
    told to stop.

    Args:
        first: most updates of a task in a round; None takes all.
        **simultaneous: arguments of `Simultaneous` but `patience`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_timeout: ClassVar[bool] = True

    def __init__(self, *, first: int | None = None, **simultaneous: Any) -> None:
        super().__init__(patience=None, **simultaneous)
        if first is not None:
            at_least("first", first, 1)
        self.first = first

    def begin(self, server: Server) -> None:
        """Deals out R; no round has begun."""
        super().begin(server)
        self.awaited = dict.fromkeys(self.tasks, 0)

    def free_slots(self, server: Server) -> int:
        """Returns how many clients the next round may have; none during a round."""
        return 0 if any(self.awaited.values()) else self.total_requests

    def dispatch(self, server: Server) -> None:
        """Begins a round when the last one has ended."""
        idle = server.tasks.idle()
        if not idle or not self.free_slots(server):
            return
        nodes = server.sample(idle, self.total_requests)
        dealt = apportion(len(nodes), {x.name: x.requests for x in self.live()})
        for learning in self.live():
            own, nodes = nodes[: dealt[learning.name]], nodes[dealt[learning.name] :]
            self.awaited[learning.name] = len(own)
            self.request(server, learning, own)

    def receive(self, server: Server, update: Update) -> None:
        """Keeps the update for the end of the round."""
        learning = self.learning(update.task)
        if not self.awaited[learning.name]:  # it came in the instant in which it was called off
            learning.server.discard(update)
            return
        learning.buffer.append(update)
        self.awaited[learning.name] -= 1
        if len(learning.buffer) == self.first:
            self.call_off(server, learning)
        self.end_round(server)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Does without the client."""
        learning = self.learning(task)
        if self.awaited[learning.name]:
            self.awaited[learning.name] -= 1
            self.end_round(server)

    def call_off(self, server: Server, learning: Learning) -> None:
        """Tells the clients of a task to stop."""
        self.awaited[learning.name] = 0
        for task in server.tasks:
            if task.memo.config[TASK_KEY] == learning.name:
                server.tasks.cancel(task)

    def end_round(self, server: Server) -> None:
        """Steps all models once nobody is awaited."""
        if any(self.awaited.values()):
            return
        for learning in self.live():
            if learning.buffer and not learning.done:
                self.flush(server, learning)
