"""What Byzantine clients do to a server: they forge the updates that they send.

A Byzantine client trains like any other, so the time, bytes and energy it takes are those of an
honest one. Attacks that know more than the client's own update read honest ones, as no client of a
deployment can, so this runs on a simulated grid only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fl.attacks import Attack
from fl.compression import PayloadError, Shapes
from fl.errors import ConfigError
from fl.flower.grid_view import Control
from fl.flower.identity import client_of
from fl.randomness import generator
from fl.strategies.drivers.liars import Known, Liars
from fl.vectors.rows import Row, as_tensor, is_finite

if TYPE_CHECKING:
    from fl.strategies.drivers.events.server import Update
    from fl.strategies.drivers.exchange import Exchange

_MOST_LATEST = 50  # clients whose last change attackers without rounds know


class Receiver(Protocol):
    """Who is sent updates; a driver's server is one."""

    @property
    def version(self) -> int:
        """How many rounds there were."""

    @property
    def control(self) -> Control:
        """Of the grid."""


class Forging:
    """Replaces the changes that Byzantine clients send by what an attack makes of a round's.

    The changes x_i = w_i - w of the model are the vectors of the attack: `honest` in the order of
    the clients, whatever the order of arrival, and `own` of the Byzantine ones. What a client sends
    beside the model (metrics, control variates) stays true. A Byzantine client whose reply did not
    come, or is none, forges nothing, and only those whose replies came count as the attack's f.
    Every forged reply is an event of the trace, counted with the faults.

    Over a compressed uplink a forged change goes through an encoder and a decoder of its own, see
    `Liars`.

    Args:
        attack: what is sent.
        exchange: says who carries it out, and through which uplink.
        task: learning task of the model, where there are several.
    """

    def __init__(self, attack: Attack, exchange: Exchange, task: str = "") -> None:
        self.attack = attack
        self.byzantine = exchange.byzantine
        self.seed = exchange.seed
        self._stream = ("attack", task) if task else ("attack",)
        self._latest: dict[int, tuple[bool, Row]] = {}  # node -> whether it lies, its last change
        self._drawn = 0
        self._layout = exchange.layout_of(task)
        uplink = None if self._layout is None else exchange.uplink
        shapes = None if self._layout is None else Shapes.trained(self._layout)
        clients, most = exchange.num_clients, exchange.max_bytes
        self._compressed = uplink is not None
        self._liars = Liars(attack, self.seed, uplink, shapes, clients, most)

    def is_byzantine(self, update: Update) -> bool:
        """Returns whether an update is from one of the clients that lie."""
        return client_of(update.node) in self.byzantine

    def forged(
        self, server: Receiver, updates: Sequence[Update], known: Known | None = None
    ) -> list[Update]:
        """Returns the updates of a round with those of Byzantine clients forged, in their order.

        Without a Byzantine update, or without an honest one for an attack that reads some, they are
        returned as they are; and, for an attack that knows the rule, if there are too few for it.

        Args:
            server: who is sent them.
            updates: of the round, in any order.
            known: of the rule that combines them, for an attack that knows it.

        Raises:
            ConfigError: the attack refuses what it finds.
        """
        order = sorted(range(len(updates)), key=lambda i: updates[i].node)
        own = [i for i in order if self.is_byzantine(updates[i])]
        honest = [i for i in order if i not in own and is_finite(updates[i].x)]
        result = list(updates)
        if not own:
            return result
        rows = self._liars.forged(
            [updates[i].delta for i in honest],
            [updates[i].delta for i in own],
            generator(self.seed, *self._stream, server.version + 1),
            known,
        )
        if rows is None:
            return result
        sent = {i: self._sent(server, updates[i], row) for i, row in zip(own, rows, strict=True)}
        return [one for i, x in enumerate(updates) if (one := sent.get(i, x)) is not None]

    def forged_one(self, server: Receiver, update: Update) -> Update | None:
        """Returns an update of a strategy without rounds, forged if it is of a Byzantine client.

        The attack is given the last honest change of each client that answered lately, and the last
        changes that the Byzantine ones would have sent. None if what it sends does not arrive.

        Args:
            server: who is sent it.
            update: as it arrived.

        Raises:
            ConfigError: the attack refuses what it finds.
        """
        self._latest.pop(update.node, None)
        if is_finite(update.x):
            self._latest[update.node] = (self.is_byzantine(update), update.delta)
        while len(self._latest) > _MOST_LATEST:
            del self._latest[next(iter(self._latest))]
        if not self.is_byzantine(update) or update.node not in self._latest:
            return update
        honest = [change for lies, change in self._latest.values() if not lies]
        own = [change for lies, change in self._latest.values() if lies]  # this one is the last
        self._drawn += bool(honest) or self.attack.knowledge == "own"
        rng = generator(self.seed, *self._stream, self._drawn)
        rows = self._liars.forged(honest, own, rng)
        return update if rows is None else self._sent(server, update, rows[-1])

    def _sent(self, server: Receiver, update: Update, change: Row) -> Update | None:
        """Returns an update as the server gets it when the client sends this change; None if not.

        A change that no payload can hold does not reach the server.
        """
        server.control.forged(update.task.message_id)
        if self._compressed and self._layout is not None and is_finite(change):
            client, name = client_of(update.node), update.task.message_id
            trained = self._layout.select(as_tensor(change)).numpy()
            try:
                decoded = self._liars.received(client, trained, name)
            except (PayloadError, ConfigError):
                server.control.rejected(update.task.message_id)
                return None
            change = self._layout.with_trained(change, decoded)
        part = update.part
        with np.errstate(over="ignore", invalid="ignore"):  # what is sent may be anything
            x = update.start + change
        return replace(update, x=x if part is None else part.put(update.start, part.of(x)))
