"""What a token does that walks from node to node: where it goes, and what it makes of a gradient.

A rule is a frozen dataclass of hyperparameters whose methods map a token's state to the next. With
row i of the topology's matrix as base chain:

    state = rule.init(w, n)
    p = rule.leaves(state, W[i])     # a node j is drawn from p, and the model goes there
    state = rule.goes(state, j)
    state = rule.learns(state, LocalTraining(state.x, x_after_training))

`fl.strategies.Walks` does everything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.strategies.gossip_rule import LocalTraining
from fl.vectors.rows import Row

Chances = NDArray[np.float64]


class WalkRule(ABC):
    """A token's part of a method without a server.

    Attributes:
        needs: vectors that nodes have to compute beside the model, by name.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def message_floats(self, n: int) -> int:
        """Returns how many numbers of 4 bytes a token carries beside its model, of n nodes."""

    @abstractmethod
    def init(self, w: Row, n: int) -> Any:
        """Returns a token's state before the first step, of the initial model and n nodes."""

    def model(self, state: Any) -> Row:
        """Returns the model that a token carries, shape (d,)."""
        x: Row = state.x
        return x

    def with_model(self, state: Any, x: Row) -> Any:
        """Returns a token's state with another model: what a Byzantine node hands on."""
        return state._replace(x=x)

    @abstractmethod
    def leaves(self, state: Any, P: Chances) -> Chances:
        """Returns with which probability the token goes where.

        Args:
            state: of the token.
            P: the base chain's, shape (n,), of where it is; 0 for who is no neighbour, or away.

        Returns:
            shape (n,), of sum 1.
        """

    @abstractmethod
    def goes(self, state: Any, j: int) -> Any:
        """Returns the state of a token that is sent to node j, whatever becomes of it there."""

    @abstractmethod
    def learns(self, state: Any, progress: LocalTraining) -> Any:
        """Returns the state of a token of whose model the node has made another."""
