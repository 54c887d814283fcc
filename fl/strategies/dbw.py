"""DBW: choose in every iteration how many gradients the next one waits for.

Xu, Neglia, Sebastianelli, "Dynamic Backup Workers for Parallel Machine Learning",
arXiv:2004.14696 (IFIP Networking 2020, Computer Networks 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least
from fl.errors import ConfigError
from fl.strategies.arrival_times import ArrivalTimes
from fl.strategies.backup_workers import BackupWorkers
from fl.strategies.gradient_rule import Gradients
from fl.vectors.rows import Row


class Estimates(NamedTuple):
    """What DBW knows.

    Attributes:
        w: the model, shape (d,).
        k: gradients that the iteration waits for.
        times: samples of T; knows the number of workers, n.
        waited: by version, how many gradients the iteration before waited for.
        variance: the last V_t, at most D of them.
        norm: the last G_t.
        smoothness: the last L_t.
        last: F, G and E|g|^2 one iteration ago; None in the first.
    """

    w: Row
    k: int
    times: ArrivalTimes
    waited: Mapping[int, int] = {}
    variance: tuple[float, ...] = ()
    norm: tuple[float, ...] = ()
    smoothness: tuple[float, ...] = ()
    last: tuple[float, float, float] | None = None


@dataclass(frozen=True)
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

    With an aggregator, g is what it makes of g_1, ..., g_k, here as well. Liars then move V_t, and
    so k, but no step.

    Clients report their loss as `loss_key`; all their batches must be of one size, or the variance
    makes no sense.

    Attributes:
        window: D.
        beta: at least 1.
        loss_key: metric of the replies.
        backup: only sets the first k.

    Raises:
        ConfigError: an argument is out of its range.
    """

    window: int = 5
    beta: float = 1.01
    loss_key: str = "train-loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("window", self.window, 1)
        if not self.beta >= 1:
            raise ConfigError(f"beta is {self.beta}; it must be at least 1")

    @property
    def reads(self) -> Sequence[str]:
        """The loss."""
        return (self.loss_key,)

    def init(self, w: Row, n: int) -> Estimates:  # type: ignore[override]  # another state
        """Returns the state in which nothing is known."""
        # As if all workers were free at the beginning.
        return Estimates(w, self.first_k(n), ArrivalTimes.unknown(n), waited={0: n})

    def combines(self, n: int) -> int:
        """Returns n."""
        return n

    def enlarged(self, state: Estimates, n: int) -> Estimates:  # type: ignore[override]
        """Makes room for the times of more gradients."""
        return state._replace(times=state.times.enlarged(n))

    def arrived(self, state: Estimates, version: int, order: int, seconds: float) -> Estimates:
        """Takes the arrival as a sample of T."""
        h = state.waited.get(version, state.times.n)
        return state._replace(times=state.times.with_sample(h, order, seconds))

    def step(  # type: ignore[override]
        self,
        state: Estimates,
        version: int,
        gradients: Gradients,
        in_use: Set[int],
    ) -> Estimates:
        """Returns the state after a step along g, with the k that is expected to be best."""
        m = len(gradients)
        waited = {v: h for v, h in state.waited.items() if v in in_use} | {version + 1: m}
        loss = float(np.mean([float(reported[self.loss_key]) for reported in gradients.metrics]))
        grown = state.last is not None and loss > self.beta * state.last[0]
        state = self.observed(state, gradients, loss)
        k, n = self.best_k(state, m), state.times.n
        k = max(k, min(m + 1, n)) if grown else k
        return state._replace(w=self.moved(state.w, gradients), k=k, waited=waited)

    def best_k(self, state: Estimates, h: int) -> int:
        """Returns the k of the largest gain per second, after an iteration of h gradients."""
        gains, n = self.gains(state), state.times.n
        if gains is None or gains.max() <= 0:
            return n
        speed = gains / state.times.table[h - 1]
        # All together flat says nothing against more gradients: then n, not the first of all.
        flat = speed[-1] >= speed.max() * (1 - 1e-9)
        return n if flat else 1 + int(np.argmax(speed))

    def observed(self, state: Estimates, gradients: Gradients, loss: float) -> Estimates:
        """Returns the state with V_t and G_t, and L_(t-1).

        Args:
            state: before.
            gradients: m of them.
            loss: F_t.
        """
        m, eta, smoothness = len(gradients), self.eta, state.smoothness
        if state.last is not None:
            last_loss, last_norm, moment = state.last
            if moment > 0:
                decrease = last_loss - loss
                smoothness += (2 * (eta * last_norm - decrease) / (eta**2 * moment),)
        mean = gradients.mean(np.float64)
        variances = state.variance
        if m > 1:
            variances += (float(np.square(gradients.rows - mean).sum() / (m - 1)),)
        variance = variances[-1] if variances else 0.0
        norm = max(0.0, float(mean @ mean) - variance / m)
        return state._replace(
            variance=variances[-self.window :],
            norm=(*state.norm, norm)[-self.window :],
            smoothness=smoothness[-self.window :],
            last=(loss, norm, norm + variance / m),
        )

    def gains(self, state: Estimates) -> NDArray[np.float64] | None:
        """Returns the gain for k = 1, ..., n, shape (n,); None as long as there is no L."""
        if not state.smoothness:
            return None
        v = sum(state.variance) / max(len(state.variance), 1)
        g = sum(state.norm) / len(state.norm)
        smoothness = max(0.0, sum(state.smoothness) / len(state.smoothness))
        half = smoothness * self.eta**2 / 2
        return np.asarray((self.eta - half) * g - half * v / np.arange(1, state.times.n + 1))
