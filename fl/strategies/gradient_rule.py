"""What a parameter server's rule is: how many gradients make a step, with explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fl.strategies.event_rule import Combine
from fl.vectors.rows import Row, mean


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients that a step is made of, in the order of their arrival.

    Attributes:
        rows: g_1, ..., g_m at w_t, shape (m, d), float32; m is at least 1, k unless workers have
            failed.
        metrics: what each worker reported, m of them.
        combine: F, by which they become one; None is their mean.
    """

    rows: Row
    metrics: Sequence[Mapping[str, Any]] = ()
    combine: Combine | None = None

    def __len__(self) -> int:
        """Returns m."""
        return len(self.rows)

    def mean(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Returns g, shape (d,): their mean, summed in a type; or F(g_1, ..., g_m)."""
        if self.combine is None:
            return mean(self.rows.astype(dtype, copy=False))
        return self._combined.astype(dtype)

    @cached_property
    def _combined(self) -> Row:
        return self.rows[0] if self.combine is None else self.combine(self.rows)


class Waiting(Protocol):
    """A state: a named tuple with the model, k, and whatever else the rule keeps."""

    @property
    def w(self) -> Row:
        """The model, shape (d,), float32."""

    @property
    def k(self) -> int:
        """For how many gradients the iteration waits."""

    def _replace(self, **changes: Any) -> Self:
        """Returns a copy with other values."""


class GradientRule(ABC):
    """A parameter server's step from iteration t to the next; t is the model's version, from 0."""

    @property
    def reads(self) -> Sequence[str]:
        """Metrics of the gradients that must be finite numbers; one without is left out."""
        return ()

    @abstractmethod
    def init(self, w: Row, n: int) -> Any:
        """Returns the state before iteration 0, of n workers."""

    def combines(self, n: int) -> int:
        """Returns the most gradients that a step is made of, with n workers."""
        return n

    def enlarged(self, state: Any, n: int) -> Any:
        """Returns the state when there are n workers, more than before."""
        return state

    def arrived(self, state: Any, version: int, order: int, seconds: float) -> Any:
        """Returns the state when a gradient has arrived, however late.

        Args:
            state: before.
            version: t of the w_t of which it is.
            order: it is the order-th of them, from 1.
            seconds: since w_t was published.
        """
        return state

    @abstractmethod
    def step(
        self,
        state: Any,
        version: int,
        gradients: Gradients,
        in_use: Set[int],
    ) -> Any:
        """Returns the state after an iteration.

        Args:
            state: of this iteration; not changed.
            version: t.
            gradients: at w_t.
            in_use: versions of which gradients may still arrive.
        """
