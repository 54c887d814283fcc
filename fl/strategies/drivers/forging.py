"""What Byzantine clients do to a server: they forge the updates that they send.

A Byzantine client trains like any other, so the time, bytes and energy it takes are those of an
honest one. Attacks that know more than the client's own update read honest ones, as no client of a
deployment can, so this runs on a simulated grid only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.attacks import Attack, Scene
from fl.compression import PayloadError, Receivers, Shapes
from fl.errors import ConfigError
from fl.flower.identity import client_of
from fl.randomness import generator
from fl.vectors.rows import Row, as_tensor, is_finite

if TYPE_CHECKING:
    from fl.strategies.drivers.events import Server, Update
    from fl.strategies.drivers.exchange import Exchange

log = logging.getLogger("fl")

_MOST_LATEST = 50  # clients whose last change attackers without rounds know

Known = Callable[["Server", int, int], tuple[Any, ...] | None]
"""Returns F, its rng and its reference for n vectors (n, d); None if F cannot take so many."""


class Forging:
    """Replaces the changes that Byzantine clients send by what an attack makes of a round's.

    The changes x_i = w_i - w of the model are the vectors of the attack: `honest` in the order of
    the clients, whatever the order of arrival, and `own` of the Byzantine ones. What a client sends
    beside the model (metrics, control variates) stays true. A Byzantine client whose reply did not
    come, or is none, forges nothing, and only those whose replies came count as the attack's f.
    Every forged reply is an event of the trace, counted with the faults.

    Over a compressed uplink a forged change goes through an encoder and a decoder of its own, as if
    the client had compressed it: what its honest twin has in memory at both ends stays as it was.
    Its bytes are charged as those of the honest payload.

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
        self._memory: Mapping[str, np.ndarray] = {}
        self._latest: dict[int, tuple[bool, Row]] = {}  # node -> whether it lies, its last change
        self._drawn = 0
        self._told = False  # that an attack could not be carried out
        self._uplink = exchange.uplink
        self._layout = exchange.layout_of(task)
        self._senders: dict[int, Any] = {}
        self._receivers: Receivers | None = None
        if self._uplink is not None and self._layout is not None:
            shapes, most = Shapes.trained(self._layout), exchange.max_bytes
            self._receivers = Receivers(self._uplink, shapes, exchange.num_clients, most)

    def is_byzantine(self, update: Update) -> bool:
        """Returns whether an update is from one of the clients that lie."""
        return client_of(update.node) in self.byzantine

    def forged(self, server: Server, updates: Sequence[Update], known: Known) -> list[Update]:
        """Returns the updates of a round with those of Byzantine clients forged, in their order.

        Without a Byzantine update, or without an honest one for an attack that reads some, they are
        returned as they are; and, for an attack that knows the rule, if there are too few for it.

        Args:
            server: what the strategy sees.
            updates: of the round, in any order.
            known: see `Known`.

        Raises:
            ConfigError: the attack refuses what it finds.
        """
        order = sorted(range(len(updates)), key=lambda i: updates[i].node)
        own = [i for i in order if self.is_byzantine(updates[i])]
        honest = [i for i in order if i not in own and is_finite(updates[i].x)]
        result = list(updates)
        if not own or (not honest and self.attack.knowledge != "own"):
            return result
        d = len(updates[own[0]].x)
        rng = generator(self.seed, *self._stream, server.version + 1)
        scene = Scene(len(own), rng, memory=self._memory)
        if self.attack.knowledge == "aggregation":
            found = known(server, len(own) + len(honest), d)
            if found is None:
                return result
            aggregator, aggregator_rng, reference = found
            scene = Scene(len(own), rng, aggregator, aggregator_rng, reference, self._memory)
        changes = [updates[i].delta for i in honest]
        empty = np.empty((0, d), np.float32)
        rows = self._attacked(
            np.stack(changes) if changes else empty,
            np.stack([updates[i].delta for i in own]),
            scene,
        )
        if rows is None:
            return result
        sent = {i: self._sent(server, updates[i], row) for i, row in zip(own, rows, strict=True)}
        return [one for i, x in enumerate(updates) if (one := sent.get(i, x)) is not None]

    def forged_one(self, server: Server, update: Update) -> Update | None:
        """Returns an update of a strategy without rounds, forged if it is of a Byzantine client.

        The attack is given the last honest change of each client that answered lately, and the last
        changes that the Byzantine ones would have sent. None if what it sends does not arrive.

        Args:
            server: what the strategy sees.
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
        if not honest and self.attack.knowledge != "own":
            return update
        self._drawn += 1
        rng = generator(self.seed, *self._stream, self._drawn)
        scene = Scene(len(own), rng, memory=self._memory)
        empty = np.empty((0, len(update.x)), np.float32)
        rows = self._attacked(np.stack(honest) if honest else empty, np.stack(own), scene)
        return update if rows is None else self._sent(server, update, rows[-1])

    def _attacked(self, honest: Row, own: Row, scene: Scene) -> Row | None:
        """Returns what Byzantine clients send, shape (f, d); None if the attack is not defined.

        So it may be if few have answered: then they stay honest, and the user is told.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is sent may be anything
                rows, self._memory = self.attack(honest, own, scene)
        except ConfigError as error:
            if not self._told:
                log.warning("%s; such clients send what honest ones do", error)
            self._told = True
            return None
        return np.asarray(rows, np.float32)

    def _sent(self, server: Server, update: Update, change: Row) -> Update | None:
        """Returns an update as the server gets it when the client sends this change; None if not.

        A change that no payload can hold does not reach the server.
        """
        server.tasks.control.forged(update.task.message_id)
        if self._receivers is not None and is_finite(change):
            try:
                change = self._through_uplink(self._receivers, update, change)
            except (PayloadError, ConfigError):
                server.reject(update)
                return None
        with np.errstate(over="ignore", invalid="ignore"):  # what is sent may be anything
            return replace(update, x=update.task.memo.w + change)

    def _through_uplink(self, receivers: Receivers, update: Update, change: Row) -> Row:
        """Returns a change as it is decoded, shape (d,), after the client has encoded it.

        Raises:
            PayloadError, ConfigError: no payload can hold it.
        """
        layout, uplink, client = self._layout, self._uplink, client_of(update.node)
        if layout is None or uplink is None:
            raise ConfigError("there is no uplink")
        shapes = Shapes.trained(layout)
        state = self._senders.get(client)
        rng = generator(self.seed, "forged compression", client, update.task.message_id)
        trained = layout.select(as_tensor(change)).numpy()
        payload, after = uplink.encode(
            trained, shapes, uplink.init(shapes) if state is None else state, rng
        )
        decoded = receivers.receive(client, payload)
        self._senders[client] = after
        return layout.with_trained(change, decoded)
