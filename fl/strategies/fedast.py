"""FedAST: several models trained at once, each asynchronously with a buffer.

Askin, Sharma, Joe-Wong, Joshi, "FedAST: Federated Asynchronous Simultaneous Training",
arXiv:2406.00302 (UAI 2024), Algorithms 1 and 2; where the paper leaves things open, the rules are
those of the authors' code (askinb/FedAST).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fl.aggregation import weight_of
from fl.checks import read_if
from fl.clients.app.task_app import TASK_KEY
from fl.errors import ConfigError
from fl.strategies.drivers.events import Server, Update, at_least, positive
from fl.strategies.drivers.simultaneous import Learning, Simultaneous
from fl.vectors.rows import Row


@read_if(
    lambda a: a["buffer_size"] is None or a["allocation"] == "dynamic",
    "ratio",
    only="{at}buffer_size counts instead",
)
@read_if(
    lambda a: a["allocation"] == "dynamic",
    "window",
    "client_lr",
    only="only {at}allocation=dynamic reads it",
)
class FedAST(Simultaneous):
    """Algorithm 1 of the paper.

    Of task m, R_m requests are in flight; each goes to a client drawn uniformly from all available
    ones, busy or not, but for those with a request that is late: requests wait for their clients.
    When b_m updates of the task are there,

        w_m <- w_m + eta / b_m sum_i (x_i - x_0,i)

    with x_0,i the model that was sent. Staleness is not weighted.

    With `allocation="dynamic"` (the paper's Realloc), after every 0.75 R M updates, M the number of
    tasks that are not done, R is dealt anew in proportion to V_m: the mean, since the last time, of

        eta_m eta / (eta_m K_m)**2 * mean_k ||Delta_k - mean(Delta)||**2 / ||mean(Delta)||**2

    over the last W updates of the task, without biases; eta_m is the client learning rate and K_m
    the number of local steps. R moves in blocks of `ratio` requests; every task keeps one.

    Args:
        buffer_size: b of every task; None keeps b_m = ceil(R_m / ratio), with the requests in
            flight for R_m.
        ratio: R_m / b_m, and the block in which requests move.
        allocation: "static" or "dynamic".
        window: W, at least 2.
        client_lr: eta_m of each task; None takes 1 for all. Of no effect if they are equal.
        **simultaneous: arguments of `Simultaneous`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        buffer_size: int | None = None,
        ratio: int = 32,
        allocation: Literal["static", "dynamic"] = "static",
        window: int = 7,
        client_lr: Mapping[str, float] | None = None,
        **simultaneous: Any,
    ) -> None:
        super().__init__(**simultaneous)
        if buffer_size is not None:
            at_least("buffer_size", buffer_size, 1)
        at_least("ratio", ratio, 1)
        at_least("window", window, 2)
        for name, rate in (client_lr or {}).items():
            positive(f"client_lr.{name}", rate)
        if allocation not in ("static", "dynamic"):
            raise ConfigError(f"allocation is {allocation!r}; it must be 'static' or 'dynamic'")
        if allocation == "dynamic" and self.one_after_another:
            raise ConfigError(
                "allocation is 'dynamic' and one_after_another true: one task at "
                "a time leaves nothing to allocate"
            )
        self.buffer_size = buffer_size
        self.ratio = ratio
        self.allocation = allocation
        self.window = window
        self.client_lr = dict(client_lr or {})

    def begin(self, server: Server) -> None:
        """Deals out R, and forgets what was estimated."""
        super().begin(server)
        if self.allocation == "dynamic" and self.total_requests < self.ratio * len(self.tasks):
            raise ConfigError(
                f"strategy.concurrency is {self.total_requests}; with allocation=dynamic it must "
                f"be at least ratio times tasks, {self.ratio} x {len(self.tasks)}, as every task "
                "keeps a block"
            )
        self.b = dict.fromkeys(self.tasks, self.buffer_size or 1)
        self.estimates = {
            name: Estimate(learning, self.window) for name, learning in self.tasks.items()
        }
        self.since_realloc = 0

    def dispatch(self, server: Server) -> None:
        """Issues every task's missing requests."""
        nodes = server.tasks.prompt()
        if not nodes:
            return
        active = Counter(task.memo.config[TASK_KEY] for task in server.tasks)
        for learning in self.live():
            # One that has lost requests to another waits until enough of its own have ended.
            free = self.total_requests - len(server.tasks)
            missing = min(learning.requests - active[learning.name], free)
            if missing > 0:
                self.request(server, learning, server.sample(nodes, missing, replace=True))
                active[learning.name] += missing
            if self.buffer_size is None:
                self.b[learning.name] = max(1, math.ceil(active[learning.name] / self.ratio))

    def receive(self, server: Server, update: Update) -> None:
        """Buffers the update, and steps its model when the buffer is full."""
        learning = self.learning(update.task)
        if learning.done:  # by an update of the same instant
            learning.server.discard(update)
            return
        if self.allocation == "dynamic":
            self.estimates[learning.name].add(update)
            self.since_realloc += 1
            self.realloc()
        learning.buffer.append(update)
        if len(learning.buffer) >= self.b[learning.name]:
            self.flush(server, learning)

    def realloc(self) -> None:
        """Algorithm 2: deals R anew by the variance of updates, once enough are known."""
        live = self.live()
        due = 0.75 * self.total_requests * len(live)
        if self.since_realloc < due or any(x.server.version <= self.window + 1 for x in live):
            return
        values = {x.name: self.variance(self.estimates[x.name]) for x in live}
        known = [v for v in values.values() if v is not None]
        if len(known) < len(live) or not sum(known) > 0:
            return
        self.since_realloc = 0
        for x in live:
            self.estimates[x.name].ratios.clear()
        requests = dict.fromkeys(values, self.ratio)
        quota = {
            name: math.floor(self.total_requests * (v or 0.0) / sum(known)) - self.ratio
            for name, v in values.items()
        }
        rest = self.total_requests - sum(requests.values())
        while rest > 0:
            name = max(quota, key=quota.__getitem__)
            block = min(self.ratio, rest)
            requests[name] += block
            quota[name] -= block
            rest -= block
        self.allot(requests)

    def variance(self, estimate: Estimate) -> float | None:
        """Returns V_m; None if nothing is known yet."""
        if not estimate.ratios:
            return None
        eta_m = self.client_lr.get(estimate.name, 1.0)
        scale = eta_m * self.eta / (eta_m * estimate.steps) ** 2
        return scale * sum(estimate.ratios) / len(estimate.ratios)


class Estimate:
    """The spread of a task's updates around their mean.

    Args:
        learning: the task.
        window: W.

    Attributes:
        ratios: mean_k ||Delta_k - mean||**2 / ||mean||**2, one for every update since Realloc.
        steps: K of the latest update, 1 if its client did not say.
    """

    def __init__(self, learning: Learning, window: int) -> None:
        layout = learning.server.model.layout
        kept = np.ones(len(learning.server.w), dtype=np.bool_)
        for entry in layout.floats:
            if entry.name.rpartition(".")[2] == "bias":
                kept[entry.offset : entry.offset + entry.size] = False
        self.name = learning.name
        self.steps = 1.0
        self.ratios: list[float] = []
        self._kept = kept
        self._deltas: deque[Row] = deque(maxlen=window)

    def add(self, update: Update) -> None:
        """Takes an update into the window."""
        self._deltas.append(update.delta[self._kept])
        self.steps = weight_of(update.metrics.get("steps")) or 1.0
        if len(self._deltas) < (self._deltas.maxlen or 0):
            return
        deltas = np.stack(self._deltas).astype(np.float64)
        mean = deltas.mean(axis=0)
        size = float(mean @ mean)
        if size > 0:
            spread = float(((deltas - mean) ** 2).sum(axis=1).mean())
            self.ratios.append(spread / size)
