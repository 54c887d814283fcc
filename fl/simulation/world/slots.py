"""Clients that come and go in slots of time, each at a rate of its own.

These are the patterns of participation of Wang, Ji, "A Lightweight Method for Tackling Unknown
Participation Statistics in Federated Averaging", arXiv:2306.03401 (ICLR 2024), section 6, with the
constants of the authors' code (IBM/fedau). There a slot is a round. So it is here if a round takes
as long as a slot: with a fleet of `durations`, constant and equal to `slot_s`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, fraction, positive
from fl.errors import ConfigError
from fl.randomness import uniforms
from fl.simulation.world.availability import Alternating

Rates = float | Sequence[float]

_AHEAD = 64  # slots that are looked at together


def checked_rates(rates: Rates, num_clients: int) -> NDArray[np.float64]:
    """Returns the probabilities of being online, shape (n,).

    Raises:
        ConfigError: they are not n, or not above 0 and at most 1.
    """
    at_least("num_clients", num_clients, 1)
    p = np.asarray(rates, dtype=np.float64)
    if p.ndim and p.shape != (num_clients,):
        raise ConfigError(f"rates has shape {p.shape}; it must be one number, or {num_clients}")
    if not ((p > 0) & (p <= 1)).all():
        raise ConfigError(f"rates is {rates!r:.80}; every one must be above 0 and at most 1")
    return np.broadcast_to(p, (num_clients,))


class _Slots(ABC):
    """Base: client i is online in the whole of slot k, [k s, (k + 1) s), or not at all."""

    def __init__(self, num_clients: int, rates: Rates, slot_s: float) -> None:
        positive("slot_s", slot_s)
        self._p = checked_rates(rates, num_clients)
        self._slot_s = float(slot_s)
        self._all = np.arange(num_clients)

    @abstractmethod
    def _on(self, clients: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns who is online in these slots, each client in its own; shapes as broadcast."""

    def online(self, t: float) -> NDArray[np.bool_]:
        """Returns who is online at time t (s), shape (n,)."""
        return self._on(self._all, np.full(len(self._all), self._slot(t)))

    def is_online(self, client: int, t: float) -> bool:
        """Returns whether the client is online at time t (s)."""
        return bool(self._on(np.array([client]), np.array([self._slot(t)]))[0])

    def next_change(self, client: int, t: float) -> float:
        """Returns the beginning of the first slot in another state; infinity if there is none."""
        if self._p[client] == 1:
            return math.inf
        first, state = self._slot(t), self.is_online(client, t)
        while True:
            slots = np.arange(first + 1, first + 1 + _AHEAD)
            changed = np.flatnonzero(self._on(np.full(_AHEAD, client), slots) != state)
            if len(changed):
                return float(slots[changed[0]] * self._slot_s)
            first += _AHEAD

    def _slot(self, t: float) -> int:
        slot = math.floor(t / self._slot_s)
        # Compare with the very numbers that next_change returns, whatever floor made of rounding.
        slot += (slot + 1) * self._slot_s <= t
        return slot - (slot * self._slot_s > t)


class Bernoulli(_Slots):
    """In each slot client n is online with probability p_n, whatever it was before.

    Args:
        num_clients: N.
        seed: root seed of the run.
        rates: p_n, above 0 and at most 1; one for all, or N.
        slot_s: s.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, num_clients: int, seed: int, rates: Rates, slot_s: float = 1.0) -> None:
        super().__init__(num_clients, rates, slot_s)
        self._seed = seed

    def _on(self, clients: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        u = uniforms(self._seed, "availability-slot", clients, slots)
        return np.asarray(u < self._p[clients])


class Cyclic(_Slots):
    """Client n is online in max(1, round(C p_n)) slots after each other of every C.

    The first of these slots is drawn uniformly.

    Args:
        num_clients: N.
        seed: root seed of the run.
        rates: p_n, above 0 and at most 1; one for all, or N.
        period: C, slots.
        slot_s: s.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self, num_clients: int, seed: int, rates: Rates, period: int = 100, slot_s: float = 1.0
    ) -> None:
        super().__init__(num_clients, rates, slot_s)
        at_least("period", period, 1)
        self._period = period
        self._active = np.maximum(1, np.round(period * self._p))
        u = uniforms(seed, "availability-phase", self._all)
        self._phase = np.floor(u * period).astype(np.int64)

    def _on(self, clients: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        place = (slots - self._phase[clients]) % self._period
        return np.asarray(place < self._active[clients])

    def next_change(self, client: int, t: float) -> float:
        """Returns the end or the beginning of its slots; infinity if these are all."""
        return math.inf if self._active[client] >= self._period else super().next_change(client, t)


class Markov(Alternating):
    """A client that is offline comes in the next slot with probability a, one that is online goes.

    Client n goes with probability a (1 / p_n - 1), so that it is online in the share p_n of all
    slots; where that is above 1, both are divided by it. Periods are geometric; the chain begins
    stationary, online with probability p_n.

    Args:
        num_clients: N.
        seed: root seed of the run.
        rates: p_n, above 0 and at most 1; one for all, or N.
        activation: a, above 0 and at most 1.
        slot_s: s.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        num_clients: int,
        seed: int,
        rates: Rates,
        activation: float = 0.05,
        slot_s: float = 1.0,
    ) -> None:
        positive("slot_s", slot_s)
        p = checked_rates(rates, num_clients)
        fraction("activation", activation)
        going = activation * (1 / p - 1)
        scale = np.maximum(going, 1.0)
        self._going, self._coming = going / scale, activation / scale
        self._slot_s = float(slot_s)
        super().__init__(num_clients, seed, p)

    def _lengths(
        self, clients: NDArray[np.integer], period: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        on, u = self._draws(clients, period)
        ends = np.where(on, self._going[clients], self._coming[clients])
        with np.errstate(divide="ignore", invalid="ignore"):
            slots = 1 + np.floor(np.log1p(-u) / np.log1p(-ends))
        return np.where(ends > 0, slots, np.inf) * self._slot_s
