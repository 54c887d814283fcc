"""Who trains and who averages where nobody is a server: a rule that every node follows by itself.

A rule is a frozen dataclass of hyperparameters whose methods map what a node knows, its view, to
the next, and a view to the sample of a round:

    view = rule.init(n)
    rule.order(k, rule.candidates(view, k, i))   # whom node i asks for round k, one after the other
    view = rule.merged(view, other)              # with what has come beside a model

`fl.strategies.Sampled` does everything else: messages, tasks, pings and timeouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar


class SampleRule(ABC):
    """A node's part of learning by samples without a server.

    Attributes:
        needs: vectors that nodes have to compute beside the model, by name.
        sample_size: s, nodes that train in a round; None leaves it to the driver.
        aggregators: a, of these, nodes that average what the round before has trained.
        success_fraction: of s, models that an aggregator waits for.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    sample_size: int | None
    aggregators: int
    success_fraction: float

    @abstractmethod
    def init(self, n: int) -> Any:
        """Returns what each of n nodes knows before the first round."""

    @abstractmethod
    def heard(self, view: Any, j: int, k: int, joined: int | None = None) -> Any:
        """Returns a view of a node that has heard from node j, at work in round k.

        Args:
            view: not changed.
            j: the node.
            k: the round, from 1; 0 is before the first.
            joined: how often j has joined, if it says so.
        """

    @abstractmethod
    def merged(self, view: Any, other: Any) -> Any:
        """Returns a view with all that another one has of later."""

    @abstractmethod
    def latest(self, view: Any) -> int:
        """Returns the latest round that a view knows of; 0 if none."""

    @abstractmethod
    def candidates(self, view: Any, k: int, i: int) -> list[int]:
        """Returns whom node i takes to be there in round k, itself always."""

    @abstractmethod
    def order(self, k: int, nodes: Sequence[int], seed: int) -> list[int]:
        """Returns nodes in the order in which they are asked for round k.

        Args:
            k: the round, from 1.
            nodes: the candidates, in any order.
            seed: of the run.
        """

    @abstractmethod
    def view_bytes(self, n: int) -> int:
        """Returns how many bytes a view of n nodes has in a message."""
