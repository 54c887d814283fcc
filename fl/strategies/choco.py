"""CHOCO: gossip of compressed differences, for whatever method.

Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with
Compressed Communication", arXiv:1902.00340, Algorithms 1 and 2; with more than one local step
Koloskova, Lin, Stich, Jaggi, arXiv:1907.09356.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fl.compression import (
    Channel,
    Compressor,
    ErrorFeedback,
    Participation,
    Shapes,
    Shrunk,
    Sign,
    State,
)
from fl.compression.tracking import Tracked
from fl.errors import ConfigError
from fl.vectors.layout import FLOAT_BYTES, Layout
from fl.vectors.rows import Row, as_tensor

_UNKNOWN = 0.5  # gamma, if nothing is known of what the compressor leaves out


class Copy(NamedTuple):
    """What all who hear a node have of its messages, and the two ends of its channel.

    Attributes:
        row: xhat_j, shape (m,).
        first: the message that all know from the beginning, shape (m,).
        senders: states of the sender, one for each vector of a message.
        receivers: states that all receivers share, likewise.
        sent: messages so far.
        last_bytes: size of the last one.
        total_bytes: of all.
    """

    row: Row
    first: Row
    senders: tuple[State, ...]
    receivers: tuple[State, ...]
    sent: int = 0
    last_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class CHOCO:
    """Nodes have copies of what others send, which compressed differences keep up to date.

        q_i    <- Q(x_i - xhat_i)                                   sent to all neighbours
        xhat_j <- xhat_j + q_j                                      for j = i and all neighbours
        x_i    <- x_i + gamma (sum_j W_ij xhat_j - xhat_i)

    Here x_i is the message of any method: its model, or all that it mixes. Whatever Q leaves out is
    sent later, so any compressor that shrinks errors will do; gamma has to be the smaller, the more
    it leaves out. If W's columns sum to 1, sum_i x_i is kept exactly, whatever the copies are. With
    Q the identity and gamma = 1 it is X <- W X. CHOCO-SGD is this under `DFedAvg` with one local
    step. DCD-PSGD (arXiv:1803.06068) puts the copy in the place of the model, and so needs
    compressors that leave out little; DeepSqueeze (arXiv:1907.07346) has error feedback on models,
    without copies.

    The copies begin at what all nodes know, the message of the initial model; in the paper at 0.
    An aggregator F in the place of the sum gives x_i + gamma (F(xhat_1, ...) - xhat_i).

    What channels do here:

    - A compressor is Q. One that is unbiased with omega of 1 or more is divided by 1 + omega, as in
      the paper, since copies would run away.
    - Error feedback of how messages change has e = x_i - xhat_i: it is the same as its compressor.
    - Channels whose two ends keep a vector h (EF21, DIANA, EControl, EF21-SGDM) are given
      x_i - x_0, and what they decode is xhat_i - x_0. For EF21 that is the same once more.

    What nodes do not train is sent as it is: buffers of the model, and what a message has besides
    vectors of a model's length.

    Attributes:
        channel: carries the differences.
        layout: of the model.
        vectors: how many vectors of the layout a message begins with.

    Raises:
        ConfigError: copies cannot follow by this channel.
    """

    channel: Channel
    layout: Layout
    vectors: int = 1

    def __post_init__(self) -> None:
        name, channel = type(self.channel).__name__, self.channel
        why = ""
        if isinstance(channel, ErrorFeedback) and channel.decay != 1:
            why = f"its memory fades (decay is {channel.decay}), and what fades never gets there"
        elif isinstance(channel, Sign) and channel.scale == "none":
            why = "it sends signs without a scale, by which copies never come to rest"
        elif channel.participation is Participation.FULL:
            why = "its errors add up, and who has missed a message cannot be helped"
        elif not isinstance(channel, Compressor | ErrorFeedback | Tracked):
            why = "it is for a server"
        if why:
            raise ConfigError(
                f"compressor is {name}, by which neighbours' copies of a node's model cannot "
                f"follow: {why}; use topk, int8, qsgd, or ef21 for example"
            )
        self.edge.init(self.shapes)

    @cached_property
    def shapes(self) -> Shapes:
        """Of what nodes train."""
        return Shapes.trained(self.layout)

    @cached_property
    def edge(self) -> Channel:
        """Q, or the channel that has it."""
        channel = self.channel
        Q = channel.compressor if isinstance(channel, ErrorFeedback) else channel
        if isinstance(Q, Compressor):
            omega = Q.variance(self.shapes)
            return Q if omega is None or omega < 1 else Shrunk(Q)
        return Q

    @property
    def gamma(self) -> float:
        """The consensus step size unless another is chosen: sqrt(delta), delta that of Q.

        |Q(x) - x|^2 <= (1 - delta) |x|^2. The bound of the theory is proportional to delta and far
        smaller than what works; the paper's gammas were found by trying.
        """
        Q = self.edge.compressor if isinstance(self.edge, Tracked) else self.edge
        delta = Q.contraction(self.shapes) if isinstance(Q, Compressor) else None
        return _UNKNOWN if delta is None else math.sqrt(delta)

    def init(self, message: Row) -> Copy:
        """Returns the copies of a node, all of which begin at the message of the initial model."""
        states = [self.edge.init(self.shapes) for _ in range(self.vectors)]
        received = [self.edge.init_receiver(self.shapes) for _ in range(self.vectors)]
        return Copy(message, message, tuple(states), tuple(received))

    def send(self, copy: Copy, message: Row, rng: np.random.Generator) -> Copy:
        """Returns the copies after a message.

        Args:
            copy: before it; not changed.
            message: shape (m,), float32, finite.
            rng: of this message.

        Raises:
            ConfigError: no payload can hold it.
            PayloadError: likewise.
        """
        d, size = self.layout.size, 0
        rows, senders, receivers = [], [], []
        for v in range(self.vectors):
            part = slice(v * d, (v + 1) * d)
            x, hat, first = (self._trained(row[part]) for row in (message, copy.row, copy.first))
            follows = isinstance(self.edge, Tracked)
            difference = x - (first if follows else hat)
            payload, sender = self.edge.encode(difference, self.shapes, copy.senders[v], rng)
            q, receiver = self.edge.receive(payload, self.shapes, copy.receivers[v])
            hat = (first if follows else hat) + q
            rows.append(self.layout.with_trained(message[part], hat))
            senders.append(sender)
            receivers.append(receiver)
            size += len(payload)
        size += FLOAT_BYTES * self._sent_as_it_is(len(message))
        return Copy(
            np.concatenate([*rows, message[self.vectors * d :]]),
            copy.first,
            tuple(senders),
            tuple(receivers),
            copy.sent + 1,
            size,
            copy.total_bytes + size,
        )

    def _trained(self, row: Row) -> Row:
        trained: Row = self.layout.select(as_tensor(row)).numpy()
        return trained

    def _sent_as_it_is(self, m: int) -> int:
        buffers = sum(entry.size for entry in self.layout.moving_buffers)
        return self.vectors * buffers + m - self.vectors * self.layout.size
