"""What a parameter server's rule is: how many gradients make a step, with explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol, Self

from fl.vectors.rows import Row


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
        gradients: Row,
        metrics: Sequence[Mapping[str, Any]],
        in_use: Set[int],
    ) -> Any:
        """Returns the state after an iteration.

        Args:
            state: of this iteration; not changed.
            version: t.
            gradients: at w_t, in the order of their arrival, shape (m, d), float32; m is at least
                1, k unless workers have failed.
            metrics: what each reported.
            in_use: versions of which gradients may still arrive.
        """
