"""What a node does where nobody is a server: adapt to its own data, combine with its neighbours.

A rule is a frozen dataclass of hyperparameters whose methods map a node's state to the next. The
state is a named tuple of arrays and numbers, so a rule can be read like its algorithm box and
tested without a grid. With X the messages, one a row, and W the matrix of the topology:

    states = [rule.init(w)] * n
    states[i] = rule.adapt(states[i], Progress(rule.model(states[i]), x_after_training))
    X = np.stack([rule.message(state) for state in states])
    states[i] = rule.combine(states[i], (W @ X)[i])

`fl.strategies.Gossip` does everything else: who trains when, what is sent, compressed, forged and
lost, and when a node has enough to go on. "Adapt" and "combine" are the two halves of a step in the
literature on diffusion over networks (Sayed, arXiv:1205.4220).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fl.aggregation import Aggregator
from fl.topologies import Stochasticity
from fl.vectors.rows import Row

Keeps = Literal["rows", "columns"]


class NodeModel(NamedTuple):
    """State of a node that keeps nothing but its model x_i, shape (d,), float32."""

    x: Row


@dataclass(frozen=True, eq=False)
class LocalTraining:
    """What a node has learnt from its own data.

    Attributes:
        start: the model it began from, shape (d,), float32.
        x: the model it has made of it, shape (d,), float32, read-only.
        vectors: what it has computed beside, shape (d,) each, by name.
    """

    start: Row
    x: Row
    vectors: Mapping[str, Row] = field(default_factory=dict)

    @property
    def delta(self) -> Row:
        """How training has changed the model, shape (d,): -lr g_i after one step of SGD."""
        with np.errstate(over="ignore"):  # seen in what is made of it
            return np.asarray(self.x - self.start)


class NodeRule(ABC):
    """A node's part of a method without a server.

    Attributes:
        needs: vectors that nodes have to compute beside the model, by name.
        vectors: how many vectors of a model's length a message begins with, the model first. A
            compressor is for these; what follows them is sent as it is.
        scalars: how many numbers follow them.
        linear: why what a node hears has to enter as a weighted sum, in words; empty if nothing but
            models are averaged, which an aggregator can do as well.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    vectors: ClassVar[int] = 1
    scalars: ClassVar[int] = 0
    linear: ClassVar[str] = ""

    @abstractmethod
    def init(self, w: Row) -> Any:
        """Returns a node's state before the first round, of the model that all begin with."""

    def model(self, state: Any) -> Row:
        """Returns the model that the node trains from and is evaluated by, shape (d,)."""
        x: Row = state.x
        return x

    @abstractmethod
    def adapt(self, state: Any, progress: LocalTraining) -> Any:
        """Returns the state of a node that has learnt from its own data."""

    def message(self, state: Any) -> Row:
        """Returns what a node sends, shape (m,), float32."""
        x: Row = state.x
        return x

    @abstractmethod
    def combine(self, state: Any, row: Row) -> Any:
        """Returns the state of a node that has heard its neighbours.

        Args:
            state: of the node; not changed.
            row: its row of W X, shape (m,), with X what all have sent.
        """

    def model_in(self, message: Row) -> Row:
        """Returns the model in a message, shape (d,): what an attack reads."""
        return message[: (len(message) - self.scalars) // self.vectors]

    def with_model(self, message: Row, x: Row) -> Row:
        """Returns a message with another model in it: what an attack sends; the rest stays true."""
        return np.concatenate([x, message[len(x) :]])


class GossipRule(NodeRule):
    """A node's part of synchronous gossip.

    Attributes:
        sends_first: whether nodes send before they adapt, so that both take place at once.
        keeps: who takes the weight of what does not arrive: "rows", the receiver, for its own;
            "columns", the sender, for its own.
        weights: the kinds of W that the method is for.
        above: what the smallest eigenvalue of I + gamma (W - I) has to be above, for methods that
            need a W that stays; None if it may change.
        gossip_steps: Q, how often a node sends and combines in a round.
    """

    sends_first: ClassVar[bool] = False
    keeps: ClassVar[Keeps] = "rows"
    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly", "rows")
    above: ClassVar[float | None] = None
    gossip_steps: int = 1

    @property
    def aggregator(self) -> Aggregator | None:
        """F, which takes the place of the weighted sum; None if the method has none of its own."""
        return None

    def waits_for(self, heard: int) -> int:
        """Returns of how many of the neighbours that it hears a node needs a message to go on."""
        return heard


class TreeRule(GossipRule):
    """A node's part of synchronous gossip on a tree, which sends each neighbour something else.

    A node's `message` is what it adds of its own; `to` and `hear` are what crosses an edge.
    """

    weights: ClassVar[tuple[Stochasticity, ...]] = ("symmetric", "doubly", "rows", "columns")

    @abstractmethod
    def to(self, state: Any, message: Row, k: int) -> Row:
        """Returns what a node sends to its neighbour k, shape (m,).

        Args:
            state: of the node.
            message: its own, or what a Byzantine node makes of it.
            k: the neighbour.
        """

    @abstractmethod
    def hear(self, state: Any, heard: Mapping[int, Row]) -> Any:
        """Returns the state of a node that has been sent something by some neighbours."""

    @abstractmethod
    def mixed(self, state: Any, n: int) -> Row:
        """Returns what takes the place of the node's row of W X, shape (m,); n nodes there are."""


@dataclass(frozen=True, eq=False)
class MergedByNode:
    """What a node is to merge with its own model, before it trains.

    Attributes:
        by: how it finds the partners of its units: see `fl.clients.app.merging`.
        others: models of others, shape (d,) each.
        shares: the weight of each model, its own first.
    """

    by: Literal["activations", "weights", "order"]
    others: Sequence[Row]
    shares: Sequence[float]


class MergingRule(GossipRule):
    """A node's part of synchronous gossip in which the node's own task merges what it has heard.

    For methods that look at a node's examples to do so. `gather` takes the place of `combine`.
    """

    @property
    @abstractmethod
    def by(self) -> Literal["activations", "weights", "order"]:
        """How units of different models are matched; "order" does not."""

    @property
    @abstractmethod
    def drawn_apart(self) -> bool:
        """Whether nodes begin with initial models that are drawn apart."""

    def told(self, t: int) -> Mapping[str, Any]:
        """Returns what nodes are told in round t, from 0, besides what they always are."""
        return {}

    @abstractmethod
    def gather(self, state: Any, others: Sequence[Row], shares: Sequence[float]) -> Any:
        """Returns the state of a node that has heard others.

        Args:
            state: of the node; not changed.
            others: their models, shape (d,) each.
            shares: the weight of each model, its own first.
        """

    @abstractmethod
    def merging(self, state: Any) -> MergedByNode:
        """Returns what the node's next task begins with."""

    def combine(self, state: Any, row: Row) -> Any:
        """Returns the state of a node that has merged already, by the sum of what it has heard."""
        return self.gather(state._replace(x=row), (), (1.0,))


class PairRule(NodeRule):
    """A node's part of asynchronous gossip in pairs.

    Between the model that a node has trained from and the one that `adapt` finds, others may have
    changed it.
    """
