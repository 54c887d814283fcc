"""One step of synchronous gossip: what every node has sent and received, and what it mixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fl.strategies.drivers.peers.edges import Edges
from fl.strategies.gossip_rule import Keeps
from fl.topologies.mixing import mix_rows
from fl.vectors.rows import Row


class ReceivedPayload(NamedTuple):
    """A payload that a node has received.

    Attributes:
        time_s: when it arrived.
        order: among those of the same time.
        source: the node it comes from.
    """

    time_s: float
    order: float
    source: int


class Step:
    """One step of gossip, in which every node sends to its neighbours once.

    Args:
        number: e, from 0; the step's matrix is W_e.
        edges: of that matrix.

    Attributes:
        rows: what others have of each node's message, for as long as somebody needs it.
        sent: what a node was sent alone, by (receiver, sender), until it mixes; of tree rules.
        posted_by: states of nodes when they had something to send; of tree rules.
        own: what a Byzantine node would have sent, for its own use.
        seen: the models that honest nodes have sent, for an attack.
        forged: whether Byzantine nodes have sent.
        posted: nodes that have something to send, or would have.
        arrived: what each node has received so far, in order.
        resolved: of how many senders each node knows whether something comes.
        latest_s: when it knew the last of them.
        absent: nodes that take no part.
        missing: pairs (i, j): what j would have sent to i does not come.
        waiting: nodes that have sent, or would have.
        done: nodes that have mixed, or would have.
    """

    def __init__(self, number: int, edges: Edges) -> None:
        self.number = number
        self.edges = edges
        self.rows: dict[int, Row] = {}
        self.sent: dict[tuple[int, int], Row] = {}
        self.posted_by: dict[int, Any] = {}
        self.own: dict[int, Row] = {}
        self.seen: dict[int, Row] = {}
        self.forged = False
        self.posted: set[int] = set()
        self.arrived: dict[int, list[ReceivedPayload]] = {}
        self.resolved: Counter[int] = Counter()
        self.latest_s: dict[int, float] = {}
        self.absent: set[int] = set()
        self.missing: set[tuple[int, int]] = set()
        self.waiting: set[int] = set()
        self.done: set[int] = set()
        self._users = {j: len(hearers) + 1 for j, hearers in enumerate(edges.hearers)}

    def copy(self, i: int) -> Row:
        """Returns what node i mixes in of itself: a Byzantine one what it would have sent."""
        return self.own[i] if i in self.own else self.rows[i]

    def finish(self, nodes: Iterable[int]) -> None:
        """Notes nodes that need nothing of this step any more, and lets go of what nobody does.

        The rows of one round in use are as many as there are nodes, for as many rounds as the
        fastest and the slowest node are apart.
        """
        for i in nodes:
            self.done.add(i)
            for j in (i, *self.edges.heard[i]):
                self._users[j] -= 1
                if not self._users[j]:
                    self.rows.pop(j, None)
                    self.own.pop(j, None)

    def weights(self, nodes: Sequence[int], keeps: Keeps) -> csr_array:
        """Returns the rows of W of some nodes, (len(nodes), n), without what does not come.

        Args:
            nodes: which rows.
            keeps: "rows": a receiver takes its own model for what it misses; "columns": a sender
                keeps what it cannot deliver, and a node that is absent keeps all.
        """
        W = self.edges.W[nodes]
        if not self.missing and not self.absent:
            return W
        W = csr_array(W, copy=True)
        of = self.edges.W
        for a, i in enumerate(nodes):
            place = slice(W.indptr[a], W.indptr[a + 1])
            columns, values = W.indices[place], W.data[place]  # views
            gone = np.array([(i, int(j)) in self.missing for j in columns])
            own = columns == i
            if keeps == "rows":
                values[own] += values[gone].sum()
            elif i in self.absent:
                values[own] = 1.0
            else:
                hearers = self.edges.hearers[i]
                values[own] += sum(of[k, i] for k in hearers if (k, i) in self.missing)
            values[gone] = 0.0
        W.eliminate_zeros()
        return W

    def mix(self, nodes: Sequence[int], keeps: Keeps) -> Row:
        """Returns what nodes make of what they have: rows of W X, shape (len(nodes), width)."""
        W = self.weights(nodes, keeps)
        used, place = np.unique(W.indices, return_inverse=True)
        compact = csr_array(
            (W.data.astype(np.float32), place, W.indptr), shape=(len(nodes), len(used))
        )
        # A Byzantine node is alone here.
        X = [self.copy(j) if j == nodes[0] else self.rows[j] for j in used.tolist()]
        mixed = mix_rows(compact, X, np.empty((len(nodes), X[0].size), np.float32))
        mixed.flags.writeable = False
        return mixed

    def heard(self, i: int, first: int) -> tuple[Row, NDArray[np.float64]]:
        """Returns what node i has, itself first, and W's weights of it: (k, m) and (k,).

        Args:
            i: the node.
            first: of how many messages of others; of those that came first.
        """
        sources = [arrival.source for arrival in self.arrived.get(i, [])[:first]]
        weights = [self.edges.W[i, j] for j in (i, *sources)]
        return np.stack([self.copy(i), *(self.rows[j] for j in sources)]), np.array(weights)
