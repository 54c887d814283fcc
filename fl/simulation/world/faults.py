"""Faults that strike single tasks: drop-out, crash, lost messages, bursts of slowness.

All draws are stateless (`fl.randomness.uniform`): what happens to a client's task k depends on
(seed, client, k) alone. A fault is not an exception: the grid records it in the trace and shows
the strategy what Flower would show it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fl.checks import is_a
from fl.errors import ConfigError
from fl.randomness import uniform, uniforms


@dataclass(frozen=True, slots=True)
class TaskFaults:
    """What goes wrong with one task.

    Attributes:
        dropout_at: fraction of the compute time in [0, 1) at which the client disappears, keeping
            its state; None if it does not. If `crash_at` is set as well, the earlier one happens.
        crash_at: the same for a crash of the client's process, which loses the client's state.
        lose_download: the message to the client is lost after its bytes were sent.
        lose_upload: the reply is lost after its bytes were sent.
        slowdown: factor on the compute time, 1.0 if the task is not slow.
            `Fleet.compute_seconds` has it in already; it is here to be recorded.
    """

    dropout_at: float | None = None
    crash_at: float | None = None
    lose_download: bool = False
    lose_upload: bool = False
    slowdown: float = 1.0


_NONE = TaskFaults()


@dataclass(frozen=True, slots=True, eq=False)
class ManyFaults:
    """What goes wrong with tasks of several clients: columns of `TaskFaults`, shape (n,).

    Attributes:
        dropout_at, crash_at: NaN where it does not happen.
        lose_download, lose_upload, slowdown: as of `TaskFaults`.
    """

    dropout_at: NDArray[np.float64]
    crash_at: NDArray[np.float64]
    lose_download: NDArray[np.bool_]
    lose_upload: NDArray[np.bool_]
    slowdown: NDArray[np.float64]


@runtime_checkable
class SlowSpells(Protocol):
    """What says which tasks of a client are slow."""

    def slowdown(self, seed: int, client: int, dispatch: int) -> float:
        """Returns the factor on the compute time of the client's task number `dispatch`."""


@dataclass(frozen=True)
class GilbertElliott:
    """Two-state Markov chain over a client's tasks: normal, or slow by `factor`.

    From normal the next task is slow with probability p, from slow the next one is normal with
    probability r. The first task is drawn from the stationary law, so every task is slow with
    probability p / (p + r); a burst of slow tasks has mean length 1 / r.

    Source: Gilbert, Bell System Technical Journal 1960, and Elliott, 1963 (bursts of errors on a
    line). Straggler fits: on AWS Lambda p = 0.048, r = 0.90 (fitted to the measured worker times
    of mamaj/Sequential-Gradient-Coding-2, slow = more than twice the fastest of the round).

    Args:
        p: probability of becoming slow, in [0, 1].
        r: probability of recovering, in (0, 1].
        factor: factor on the compute time of a slow task, at least 1.

    Raises:
        ConfigError: an argument is outside its range.
    """

    p: float
    r: float
    factor: float
    # The last state asked for, per (seed, client). Only a shortcut: see `is_slow`.
    _seen: dict[tuple[int, int], tuple[int, bool]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_probability("slowdown.p", self.p)
        _check_probability("slowdown.r", self.r)
        if self.r == 0:
            raise ConfigError(
                "slowdown.r is 0: a client that became slow would stay slow for ever. Use r > 0; "
                "bursts have mean length 1/r."
            )
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise ConfigError(
                f"slowdown.factor is {self.factor}; it multiplies the compute time of slow tasks "
                "and must be finite and at least 1."
            )

    def is_slow(self, seed: int, client: int, dispatch: int) -> bool:
        """Returns whether the client's task number `dispatch` is slow; a pure function.

        One uniform number u_k decides step k: the new state is slow if u_k < p (from normal) or
        u_k < 1 - r (from slow). A number below both limits, or above both, gives the state
        whatever it was before; one in between keeps the state if p < 1 - r, and reverses it if
        p > 1 - r. So the search goes back from `dispatch` only to the last step that settles the
        state, to task 0, or to the state remembered from the previous call.
        """
        start, slow = self._seen.get((seed, client), (-1, False))
        if start > dispatch:
            start = -1
        low, high = sorted((self.p, 1.0 - self.r))
        k = dispatch
        while k > start:
            u = uniform(seed, "slowdown", client, k)
            if k == 0:
                slow = u < self.p / (self.p + self.r)
                break
            if u < low or u >= high:
                slow = u < low
                break
            k -= 1
        if self.p > 1.0 - self.r and (dispatch - k) % 2:
            slow = not slow
        self._seen[seed, client] = (dispatch, slow)
        return slow

    def slowdown(self, seed: int, client: int, dispatch: int) -> float:
        """Returns `factor` if the client's task number `dispatch` is slow, else 1.0."""
        return self.factor if self.is_slow(seed, client, dispatch) else 1.0


@dataclass(frozen=True)
class Faults:
    """Probabilities of the faults of a task.

    Args:
        dropout: probability that the client disappears while computing, at a uniform point.
        crash: probability that the client's process dies while computing, and with it its state.
        message_loss: probability that a whole message is lost, for each direction of each task and
            for each payload from client to client.
            Packet loss is another thing: it slows a link down, see `Links.loss`.
        slowdown: chain of slow spells, or None.
        detection_s: seconds until the server learns that a client is gone; None if it never does
            and has to run into its timeout.

    Raises:
        ConfigError: a probability outside [0, 1], or a negative time.
    """

    dropout: float = 0.0
    crash: float = 0.0
    message_loss: float = 0.0
    slowdown: SlowSpells | None = None
    detection_s: float | None = None

    def __post_init__(self) -> None:
        _check_probability("dropout", self.dropout)
        _check_probability("crash", self.crash)
        _check_probability("message_loss", self.message_loss)
        if self.slowdown is not None:
            is_a("slowdown", self.slowdown, SlowSpells, such_as="GilbertElliott(...)")
        if self.detection_s is not None and not (
            math.isfinite(self.detection_s) and self.detection_s >= 0
        ):
            raise ConfigError(
                f"detection_s is {self.detection_s}; it must be a finite number of seconds, at "
                "least 0, or null if the server never learns of a lost client."
            )

    def draw(self, seed: int, client: int, dispatch: int) -> TaskFaults:
        """Returns the faults of the client's task number `dispatch`; a pure function."""
        slow = self.slowdown
        if slow is None and self.dropout == self.crash == self.message_loss == 0:
            return _NONE
        return TaskFaults(
            dropout_at=_moment(self.dropout, seed, "dropout", client, dispatch),
            crash_at=_moment(self.crash, seed, "crash", client, dispatch),
            lose_download=self._lost(seed, "lose-download", client, dispatch),
            lose_upload=self._lost(seed, "lose-upload", client, dispatch),
            slowdown=1.0 if slow is None else slow.slowdown(seed, client, dispatch),
        )

    def draw_all(
        self, seed: int, clients: NDArray[np.int64], dispatches: NDArray[np.int64]
    ) -> ManyFaults:
        """Returns `draw` of one task of each of several clients."""
        loss, slow = self.message_loss, self.slowdown

        def moments(probability: float, purpose: str) -> NDArray[np.float64]:
            at = np.full(len(clients), np.nan)
            if probability > 0:
                some = uniforms(seed, purpose, clients, dispatches) < probability
                at[some] = uniforms(seed, f"{purpose}-at", clients[some], dispatches[some])
            return at

        def lost(purpose: str) -> NDArray[np.bool_]:
            if not loss > 0:
                return np.zeros(len(clients), np.bool_)
            return uniforms(seed, purpose, clients, dispatches) < loss

        slowdown = np.ones(len(clients))
        if slow is not None:
            tasks = zip(clients.tolist(), dispatches.tolist(), strict=True)
            slowdown[:] = [slow.slowdown(seed, client, dispatch) for client, dispatch in tasks]
        return ManyFaults(
            dropout_at=moments(self.dropout, "dropout"),
            crash_at=moments(self.crash, "crash"),
            lose_download=lost("lose-download"),
            lose_upload=lost("lose-upload"),
            slowdown=slowdown,
        )

    def loses_transfer(self, seed: int, source: int, target: int, index: int) -> bool:
        """Returns whether the `index`-th payload from one client to another is lost."""
        return self._lost(seed, f"lose-transfer-from-{source}", target, index)

    def _lost(self, seed: int, purpose: str, client: int, dispatch: int) -> bool:
        loss = self.message_loss
        return loss > 0 and uniform(seed, purpose, client, dispatch) < loss


def _moment(
    probability: float, seed: int, purpose: str, client: int, dispatch: int
) -> float | None:
    """Returns a uniform point in [0, 1) with the given probability, else None."""
    if probability > 0 and uniform(seed, purpose, client, dispatch) < probability:
        return uniform(seed, f"{purpose}-at", client, dispatch)
    return None


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; a probability must be between 0 and 1.")
