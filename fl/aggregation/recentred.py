"""A rule for updates, applied to models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.aggregation.aggregator import Aggregator, Context, Invariances, Reference
from fl.aggregation.gram import Array
from fl.aggregation.rows import Rows
from fl.errors import ConfigError


@dataclass(frozen=True)
class Recentred(Aggregator):
    """own + F(x_1 - own, ..., x_n - own), with own the vector of the node that aggregates.

    So a rule that bounds how far a result is from zero, or that takes signs, bounds how far a
    node's model moves from itself, and takes signs of what others differ in: what it does to
    updates. The rule's own reference is zero.

    Attributes:
        rule: F, for updates.
    """

    rule: Aggregator

    @property
    def name(self) -> str:
        """The rule's."""
        return self.rule.name

    @property
    def reference(self) -> Reference:
        """The node's own vector."""
        return "own-vector"

    @property
    def invariances(self) -> Invariances:
        """Translation, and what else the rule has but scaling and hull, which are about zero."""
        return (self.rule.invariances - {"hull", "box"}) | {"translation"}

    def tolerates(self, n: int) -> int:
        """Returns what the rule does."""
        return self.rule.tolerates(n)

    def check(self, n: int) -> None:
        """Raises ConfigError unless the rule can aggregate n vectors."""
        self.rule.check(n)

    def apply(self, rows: Rows, context: Context) -> Array:
        """Returns the own vector, moved by F of the differences to it."""
        own = context.reference
        if own is None:
            raise ConfigError(f"{self.name}: pass the node's own vector as reference")
        own = own.astype(rows.x.dtype, copy=False)
        differences = Rows(rows.x - own, rows.weights)
        moved = self.rule.aggregate(differences, Context(context.rng, np.zeros_like(own)))
        return np.asarray(own + moved)
