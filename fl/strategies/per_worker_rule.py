"""Outer steps whose workers may part: after an all-reduce that was given up, each steps alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fl.strategies.outer_optimizers import Vector, rounded
from fl.strategies.outer_rule import OuterGradients, OuterRule
from fl.vectors.rows import Row


class Parted(NamedTuple):
    """The state of a fragment.

    Attributes:
        shared: of all workers; None once they have parted.
        own: of each worker since, by its number.
    """

    shared: Any
    own: Mapping[int, Any]


class PerWorkerRule:
    """A rule of which every worker may have a state of its own.

    As long as no all-reduce is given up all have one state, and this is the rule. If one is, worker
    m goes on by its own outer gradient,

        s_m <- reduced(s_m, Delta_m),

    and from then on every mean of outer gradients moves each worker from where it is: what they are
    apart stays for good, and momenta forget it. PRIME does so after its last retry
    (arXiv:2412.01152; the code of PrimeIntellect-ai/prime: "pseudo-gradient without reduce"). The
    model to evaluate is the mean of the workers'. Whoever enters has the state of the first of
    those that are there; if nobody is, all have that of the first of those that were.

    Args:
        rule: whose workers wait for the mean, and take the same step.
    """

    def __init__(self, rule: OuterRule) -> None:
        self._rule = rule

    def init(self, theta: Row) -> Parted:
        """Returns the state before the first step, of parameters of shape (n,)."""
        return Parted(self._rule.init(theta), {})

    def reduced(self, s: Parted, gradients: OuterGradients) -> Parted:
        """Returns the state after an all-reduce has finished; NoStep as the rule's."""
        if not s.own:
            return Parted(self._rule.reduced(s.shared, gradients), {})
        own = {m: self._rule.reduced(s.own[m], gradients) for m in sorted(gradients.deltas)}
        return Parted(None, own)

    def alone(self, s: Parted, deltas: Mapping[int, Vector]) -> Parted:
        """Returns the state after each worker has stepped by its own outer gradient; NoStep too."""
        own = {
            m: self._rule.reduced(self._of(s, m), OuterGradients({m: delta}))
            for m, delta in sorted(deltas.items())
        }
        return Parted(None, own)

    def entered(self, s: Parted, m: int, present: Sequence[int]) -> Parted:
        """Returns the state with a worker that begins among those that are present."""
        if not s.own:
            return Parted(self._rule.entered(s.shared, m, present), {})
        source = min((w for w in present if w in s.own), default=min(s.own))
        if not present:
            return Parted(self._rule.entered(s.own[source], m, present), {})
        return Parted(None, {**s.own, m: self._rule.entered(s.own[source], m, present)})

    def beside(self, s: Parted) -> int:
        """Returns how many numbers a worker that enters needs beside the outer parameters."""
        return self._rule.beside(self._of(s, min(s.own, default=0)))

    def theta(self, s: Parted, m: int) -> Row:
        """Returns the outer parameters that worker m goes on from, shape (n,)."""
        return self._rule.theta(self._of(s, m), m)

    def model(self, s: Parted, present: Sequence[int]) -> Row:
        """Returns the mean of the outer parameters of the workers that take part, shape (n,)."""
        if not s.own:
            return self._rule.model(s.shared, present)
        there = [m for m in present if m in s.own] or sorted(s.own)
        rows = [self._rule.model(s.own[m], [m]) for m in there]
        return rounded(np.mean(rows, axis=0, dtype=np.float64))

    def __getattr__(self, name: str) -> Any:
        """Returns what the rule has: nothing else is of parted workers."""
        return getattr(self._rule, name)

    @staticmethod
    def _of(s: Parted, m: int) -> Any:
        return s.own[m] if s.own else s.shared
