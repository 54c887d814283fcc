"""One vector, sent again and again as it changes, to receivers of which some miss messages.

What a server does with its model. Two kinds of channels fit:

- A rounding compressor C (a cast, integers, a codebook, natural compression, none): each message is
  C(w) and can be decoded alone. Nobody keeps anything.
- `EF21` around a contractive compressor C: all receivers that are in step hold the same estimate h,
  and a message is C(w - h), h <- h + C(w - h). On the model this is EF21-P, the downlink of
  EF21-BC (Fatkhullin, Sokolov, Gorbunov, Li, Richtarik, "EF21 with Bells & Whistles", 2021,
  arXiv:2110.03294, Algorithm 5; Gruntkowska, Tyurin, Richtarik, 2022, arXiv:2209.15218). It is also
  the server's error feedback of DoubleSqueeze (Tang, Yu, Lian, Zhang, Liu, 2019, arXiv:1905.05957):
  with x = w_t - w_{t-1} and residual e, the sums telescope to e_t = w_t - h_t.

A receiver that missed messages gets those it lacks, or h itself where that is shorter; so every
receiver holds exactly h after every message it gets, whatever the participation.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from fl.compression.cast import Cast
from fl.compression.codebook import Codebook
from fl.compression.compressor import Channel, Compressor, Shapes, State, Vector
from fl.compression.ef21 import EF21
from fl.compression.error_feedback import ErrorFeedback
from fl.compression.identity import Identity
from fl.compression.natural import Natural
from fl.compression.uniform import UniformQuantizer
from fl.compression.wire import PayloadError
from fl.errors import ConfigError
from fl.randomness import generator

_ROUNDING = (Identity, Cast, UniformQuantizer, Codebook, Natural)


class Broadcast:
    """The sender's side: the versions of a vector, and what each receiver must be sent.

    Args:
        channel: carries the vector.
        shapes: of its tensors.
        seed: of the stream (seed, "broadcast", version) that a message's random numbers come from.
        name: of the vector, which is in the stream, too; "" is the model.

    Attributes:
        version: number of the vector sent last, from 0; -1 before the first.

    Raises:
        ConfigError: the channel cannot carry a broadcast.
    """

    def __init__(self, channel: Channel, shapes: Shapes, seed: int = 0, name: str = "") -> None:
        check_broadcast(channel, shapes)
        self.channel = channel
        self.shapes = shapes
        self.stream = (seed, "broadcast", name) if name else (seed, "broadcast")
        self.version = -1
        self._w: Vector | None = None
        self._held: Vector | None = None
        self._state: State = channel.init(shapes)
        self._log: deque[tuple[int, bytes]] = deque()  # the last messages, each with its version
        self._whole: bytes | None = None

    @property
    def held(self) -> Vector:
        """What receivers of the last version hold, shape (d,), float32.

        Raises:
            ConfigError: nothing was sent yet.
        """
        if self._held is None:
            raise ConfigError("nothing was sent yet")
        return self._held

    def send(self, w: Vector) -> None:
        """Makes w the last version; the same vector again is no new version.

        Args:
            w: shape (d,), float32; must not be changed afterwards.
        """
        if self._w is not None and (w is self._w or np.array_equal(w, self._w)):
            return
        self.version += 1
        rng = generator(*self.stream, self.version)
        payload, self._state = self.channel.encode(w, self.shapes, self._state, rng)
        if isinstance(self.channel, EF21):
            held = self._state["h"]
        else:
            held, _ = self.channel.receive(payload, self.shapes, {})
            self._log.clear()
        held.flags.writeable = False
        self._w, self._held, self._whole = w, held, None
        self._log.append((self.version, payload))
        # More than the whole vector takes would never be sent.
        while len(self._log) > 1 and sum(len(p) for _, p in self._log) > self._whole_length:
            self._log.popleft()

    def parts(self, known: int | None) -> tuple[bytes, ...]:
        """Returns what a receiver needs to hold the last version.

        Args:
            known: a version it holds, or an older one than it does; None if it holds nothing.
        """
        if not isinstance(self.channel, EF21):
            return (self._log[-1][1],)
        first = self._log[0][0]
        missing = None if known is None else known + 1
        if missing is None and first == 0:
            missing = 0
        if missing is not None and missing >= first:
            parts = tuple(payload for version, payload in self._log if version >= missing)
            if sum(len(part) for part in parts) <= self._whole_length:
                return parts
        if self._whole is None:
            self._whole = self.channel.catch_up(self._state, self.shapes)
        return (self._whole,)

    @property
    def _whole_length(self) -> int:
        return self.channel.length(self.shapes).most


def receive_parts(
    channel: Channel, shapes: Shapes, state: State, parts: tuple[bytes, ...], version: int
) -> tuple[Vector, State]:
    """Returns the vector that a broadcast's message means, and the receiver's state after it.

    Args:
        channel: the sender's.
        shapes: of the tensors.
        state: the receiver's; `channel.init_receiver(shapes)` at first; not changed.
        parts: what `Broadcast.parts` gave, or anything else.
        version: the sender's version.

    Raises:
        PayloadError: a part is malformed, or the parts do not lead to the version.
    """
    if not isinstance(channel, EF21):
        if len(parts) != 1:
            raise PayloadError(f"{len(parts)} payloads; {type(channel).__name__} sends one")
        return channel.receive(parts[0], shapes, state)
    for part in parts:
        # A receiver whose last reply was lost holds more than the sender knows of.
        if channel.number(part, shapes) >= channel.next_message(state) or channel.is_whole(
            part, shapes
        ):
            _, state = channel.receive(part, shapes, state)
    if channel.next_message(state) != version + 1:
        raise PayloadError(
            f"this receiver holds version {channel.next_message(state) - 1} of the model after a "
            f"message of version {version}: it lost its memory, or messages overtook each other; "
            "the sender has to send the whole model"
        )
    return state["h"], state


def check_broadcast(channel: Channel, shapes: Shapes) -> None:
    """Checks that a channel can carry a broadcast.

    Raises:
        ConfigError: it cannot; the message says why and what can.
    """
    name = type(channel).__name__
    if isinstance(channel, EF21):
        omega = channel.compressor.variance(shapes)
        if omega is not None and omega >= 1:
            raise ConfigError(
                f"the downlink's EF21 is around {type(channel.compressor).__name__}, unbiased with "
                f"omega={omega:.3g} here; from 1 on the distance of the clients' model to the "
                "server's grows without bound: wrap it in Shrunk, or take a contractive one (top-k)"
            )
    elif isinstance(channel, ErrorFeedback):
        raise ConfigError(
            "ErrorFeedback cannot carry the downlink: with clients that miss rounds, the sum of "
            "its messages is nobody's model. EF21 around the same compressor is error feedback on "
            "the model's changes, with the residual w - h (compressor@downlink=ef21)"
        )
    elif isinstance(channel, Compressor) and not isinstance(channel, _ROUNDING):
        raise ConfigError(
            f"{name} cannot carry the downlink alone: it would replace the model by what {name} "
            "keeps of it. Put it into EF21, which sends the model's changes "
            "(compressor@downlink=ef21), or round: fp16, bf16, fp8, int8, codebook, natural"
        )
    elif not isinstance(channel, Compressor):
        raise ConfigError(
            f"{name} cannot carry the downlink: it is for gradients of many senders, and a client "
            "that missed a message cannot be brought to the others' estimate; use EF21 "
            "(compressor@downlink=ef21)"
        )
