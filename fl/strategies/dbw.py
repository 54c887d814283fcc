"""DBW: choose in every iteration how many gradients the next one waits for.

Xu, Neglia, Sebastianelli, "Dynamic Backup Workers for Parallel Machine Learning",
arXiv:2004.14696 (IFIP Networking 2020, Computer Networks 2021).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.strategies.arrival_times import ArrivalTimes
from fl.strategies.backup_workers import BackupWorkers
from fl.strategies.drivers.events import Server, Update, at_least
from fl.vectors.rows import Row


class DBW(BackupWorkers):
    """Dynamic backup workers: the k with the largest expected decrease of the loss per second.

    After iteration t with gradients g_1, ..., g_k at w_t of mean g, and with the workers' mean loss
    F_t there, the server estimates

        V_t = sum_j |g_j - g|^2 / (k - 1)           variance of a gradient (the last one, for k = 1)
        G_t = max(0, |g|^2 - V_t / k)               squared norm of the full gradient
        L_t = 2 (eta G_t - (F_t - F_(t+1))) / (eta^2 (G_t + V_t / k))     smoothness

    the last one iteration later, and takes means V, G, L over the last D, L at least 0: the losses
    are noisy, and to cut off every L_t at 0 would bias their mean upwards. Then

        gain(k) = (eta - L eta^2 / 2) G - (L eta^2 / 2) V / k
        k_(t+1) = argmax over k of gain(k) / T(k_t, k)

    with T from `ArrivalTimes`, to which every arrival counts, also of late gradients. Of equal ones
    the smallest k is taken, unless n is among them. If no gain is positive, and until there is an
    L, all n are waited for. If F has grown by more than the factor beta in an iteration,
    k_(t+1) >= k_t + 1.

    Clients report their loss as `loss_key`; all their batches must be of one size, or the variance
    makes no sense.

    Args:
        window: D.
        beta: at least 1.
        loss_key: metric of the replies.
        **workers: arguments of `BackupWorkers`; `backup` only sets the first k.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        window: int = 5,
        beta: float = 1.01,
        loss_key: str = "train-loss",
        **workers: Any,
    ) -> None:
        super().__init__(**workers)
        at_least("window", window, 1)
        if not beta >= 1:
            raise ConfigError(f"beta is {beta}; it must be at least 1")
        self.window = window
        self.beta = beta
        self.loss_key = loss_key

    def unusable(self, update: Update) -> str | None:
        """Refuses a worker that does not report its loss."""
        if _loss(update.metrics.get(self.loss_key)) is None:
            return (
                f"it reports no '{self.loss_key}' that is a finite number: DBW needs it, set "
                "strategy.loss_key"
            )
        return None

    def begin(self, server: Server) -> None:
        """Forgets all estimates."""
        super().begin(server)
        n = len(self.workers)
        self.times = ArrivalTimes(n)
        self.waited = {0: n}  # h of each version: as if all workers were free at the beginning
        self.variance: deque[float] = deque(maxlen=self.window)
        self.norm: deque[float] = deque(maxlen=self.window)
        self.smoothness: deque[float] = deque(maxlen=self.window)
        self.last: tuple[float, float, float] | None = None  # F, G, E|g|^2 one iteration ago

    def enlarged(self) -> None:
        """Makes room for the times of more gradients."""
        self.times.enlarge(len(self.workers))

    def arrived(self, server: Server, version: int, order: int, seconds: float) -> None:
        """Takes the arrival as a sample of T."""
        self.times.add(self.waited[version], order, seconds)

    def next_k(self, server: Server, gradients: Sequence[Row], updates: Sequence[Update]) -> int:
        """Returns the k that is expected to be best."""
        k = len(gradients)
        self.waited[server.version + 1] = k
        for version in self.waited.keys() - self.published_s.keys() - {server.version + 1}:
            del self.waited[version]
        loss = self.mean_loss(updates)
        grown = self.last is not None and loss > self.beta * self.last[0]
        self.observe(np.stack(gradients), loss)
        gains = self.gains()
        n = len(self.workers)
        if gains is None or gains.max() <= 0:
            best = n
        else:
            speed = gains / self.times.table()[k - 1]
            # All together flat says nothing against more gradients: then n, not the first of all.
            flat = speed[-1] >= speed.max() * (1 - 1e-9)
            best = n if flat else 1 + int(np.argmax(speed))
        return max(best, min(k + 1, n)) if grown else best

    def observe(self, gradients: NDArray[np.float32], loss: float) -> None:
        """Estimates V_t and G_t, and L_(t-1).

        Args:
            gradients: shape (k, d).
            loss: F_t.
        """
        k, eta = len(gradients), self.eta
        if self.last is not None:
            last_loss, last_norm, moment = self.last
            if moment > 0:
                decrease = last_loss - loss
                self.smoothness.append(2 * (eta * last_norm - decrease) / (eta**2 * moment))
        mean = gradients.mean(axis=0, dtype=np.float64)
        if k > 1:
            self.variance.append(float(np.square(gradients - mean).sum() / (k - 1)))
        variance = self.variance[-1] if self.variance else 0.0
        norm = max(0.0, float(mean @ mean) - variance / k)
        self.norm.append(norm)
        self.last = (loss, norm, norm + variance / k)

    def gains(self) -> NDArray[np.float64] | None:
        """Returns the gain for k = 1, ..., n, shape (n,); None as long as there is no L."""
        if not self.smoothness:
            return None
        v = sum(self.variance) / max(len(self.variance), 1)
        g = sum(self.norm) / len(self.norm)
        smoothness = max(0.0, sum(self.smoothness) / len(self.smoothness))
        half = smoothness * self.eta**2 / 2
        return np.asarray((self.eta - half) * g - half * v / np.arange(1, len(self.workers) + 1))

    def mean_loss(self, updates: Sequence[Update]) -> float:
        """Returns F_t."""
        losses = [_loss(update.metrics.get(self.loss_key)) for update in updates]
        return float(np.mean([loss for loss in losses if loss is not None]))


def _loss(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
