"""The edges of a network, and what goes over them: messages as they are, or compressed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from fl.compression import PayloadError
from fl.errors import ConfigError
from fl.randomness import generator
from fl.strategies.choco import CHOCO, Copy
from fl.vectors.rows import Row, is_finite


class Edges(NamedTuple):
    """The edges of a matrix, without the diagonal.

    Attributes:
        W: the matrix.
        heard: for each node, whom it hears.
        hearers: for each node, who hears it.
    """

    W: csr_array
    heard: list[list[int]]
    hearers: list[list[int]]

    @classmethod
    def of(cls, W: csr_array) -> Edges:
        """Returns the edges of a matrix: W[i, j] is what i gives to j."""
        n = W.shape[0]
        heard: list[list[int]] = [[] for _ in range(n)]
        hearers: list[list[int]] = [[] for _ in range(n)]
        entries = W.tocoo()
        for i, j in zip(entries.row.tolist(), entries.col.tolist(), strict=True):
            if i != j:
                heard[i].append(j)
                hearers[j].append(i)
        return cls(W, heard, hearers)


class Messages:
    """What nodes send to whom, and how many bytes that takes.

    A compressed message is encoded once, and the same payload goes to everybody. Whoever has missed
    payloads of a node (they were lost, one of the two was away, or the graph has no such edge now
    and then) gets them with the next, or the copy itself if that is shorter: so all who hear a node
    have the same copy of its messages.

    Args:
        first: each node's message of the initial model, which all know.
        whole_bytes: size of a message as it is.
        choco: compresses messages; None sends them as they are.
        seed: of compressors.
    """

    def __init__(
        self, first: Sequence[Row], whole_bytes: int, choco: CHOCO | None, seed: int
    ) -> None:
        self._whole_bytes = whole_bytes
        self._choco = choco
        self._seed = seed
        self._copies: list[Copy] = [] if choco is None else [choco.init(row) for row in first]
        self._heard_bytes: Counter[tuple[int, int]] = Counter()  # (i, j): of j's, that i has

    @property
    def exact(self) -> bool:
        """Whether messages are sent as they are."""
        return self._choco is None

    def send(self, j: int, message: Row) -> Row | None:
        """Returns what all that hear a node make of a message: shape (m,), finite.

        None if there is nothing that they could: it is not finite, or no payload can hold it. Who
        receives it throws it away.
        """
        if not is_finite(message):
            return None
        if self._choco is None:
            return message
        copy = self._copies[j]
        rng = generator(self._seed, "compression", j, copy.sent)
        try:
            after = self._choco.send(copy, message, rng)
        except (ConfigError, PayloadError):
            return None
        if not is_finite(after.row):
            return None
        self._copies[j] = after
        return after.row

    def copy(self, j: int, message: Row) -> Row:
        """Returns what others have of a node, whose message is this."""
        return message if self._choco is None else self._copies[j].row

    def bytes_to(self, j: int, i: int) -> int:
        """Returns the size of what node j sends to node i now, of its last message."""
        if self._choco is None:
            return self._whole_bytes
        copy = self._copies[j]
        owed = copy.total_bytes - self._heard_bytes[i, j]
        return owed if owed == copy.last_bytes else min(owed, self._whole_bytes)

    def arrived(self, j: int, i: int) -> None:
        """Notes that node i has the last message of node j, and all before it."""
        if self._choco is not None:
            self._heard_bytes[i, j] = self._copies[j].total_bytes


def moved(message: Row, mixed: Row, copy: Row, gamma: float) -> Row:
    """Returns x_i + gamma (sum_j W_ij xhat_j - xhat_i), shape (m,): see `fl.strategies.choco`.

    Args:
        message: x_i, shape (m,).
        mixed: the sum.
        copy: xhat_i.
        gamma: consensus step size.
    """
    return np.asarray(message + np.float32(gamma) * (mixed - copy))
