"""Byzantine senders: what an attack has them send of one kind of vectors, and how it arrives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.attacks import Attack, Scene
from fl.compression import Channel, Receivers, Shapes
from fl.compression.compressor import State
from fl.errors import ConfigError
from fl.randomness import generator

log = logging.getLogger("fl")

Vectors = NDArray[Any]
Rule = tuple[Any, np.random.Generator | None, Any]
"""An aggregator, the generator that it will be given, and its reference."""
Known = Callable[[int, int], Rule | None]
"""Returns what n vectors of length d will be combined by; None if they are too few for it."""


class Liars:
    """The Byzantine senders of vectors of one shape, with what they and the attack remember.

    Over a channel a forged vector goes through an encoder and a decoder of its own, as if its
    sender had encoded it: what the honest twin has in memory at both ends stays as it was. Its
    bytes are charged as those of the honest payload.

    Args:
        attack: what is sent.
        seed: of attacks that draw, and of compressors.
        channel: what vectors are sent through; None sends them as they are.
        shapes: of the tensors in a vector; read with a channel.
        num_clients: clients there are; read with a channel.
        max_bytes: most bytes that receivers may keep of all clients together.
    """

    def __init__(
        self,
        attack: Attack,
        seed: int,
        channel: Channel | None,
        shapes: Shapes | None = None,
        num_clients: int = 0,
        max_bytes: int = 0,
    ) -> None:
        self.attack = attack
        self._seed = seed
        self._channel = channel
        self._memory: Mapping[str, Vectors] = {}
        self._told = False  # that the attack could not be carried out
        self._senders: dict[int, State] = {}
        self._receivers: Receivers | None = None
        if channel is not None and shapes is not None:
            self._receivers = Receivers(channel, shapes, num_clients, max_bytes)

    def forged(
        self,
        honest: Sequence[Vectors],
        own: Sequence[Vectors],
        rng: np.random.Generator,
        known: Known | None = None,
    ) -> Vectors | None:
        """Returns what Byzantine clients send, shape (f, d); None if the attack is not defined.

        So it is without an honest vector for an attack that reads some, or without a rule for one
        that knows it; and so it may be if few have answered: then the user is told.

        Args:
            honest: shape (d,) each.
            own: what they would send, shape (d,) each; at least one.
            rng: of this attack.
            known: of the rule, for an attack that knows it.
        """
        if not honest and self.attack.knowledge != "own":
            return None
        scene = Scene(len(own), rng, memory=self._memory)
        if self.attack.knowledge == "aggregation" and known is not None:
            rule = known(len(honest) + len(own), len(own[0]))
            if rule is None:
                return None
            scene = Scene(len(own), rng, *rule, memory=self._memory)
        x = np.stack([*honest, *own])
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is sent may be anything
                rows, self._memory = self.attack(x[: len(honest)], x[len(honest) :], scene)
        except ConfigError as error:
            if not self._told:
                log.warning("%s; such clients send what honest ones do", error)
            self._told = True
            return None
        return np.asarray(rows, x.dtype)

    def received(self, client: int, x: Vectors, *name: int | str) -> Vectors:
        """Returns a forged vector as it is decoded, shape (d,), after its sender has encoded it.

        Args:
            client: the sender.
            x: shape (d,).
            name: of the message, for what the encoder draws.

        Raises:
            PayloadError, ConfigError: no payload can hold it.
        """
        if self._channel is None or self._receivers is None:
            return x
        shapes = self._receivers.shapes
        state = self._senders.get(client) or self._channel.init(shapes)
        rng = generator(self._seed, "forged compression", client, *name)
        x = np.ascontiguousarray(x, np.float32)
        payload, state = self._channel.encode(x, shapes, state, rng)
        decoded = self._receivers.receive(client, payload)
        self._senders[client] = state
        return decoded

    def forget(self, client: int) -> None:
        """Drops what both ends of a sender remember: it starts over."""
        self._senders.pop(client, None)
        if self._receivers is not None:
            self._receivers.forget(client)
