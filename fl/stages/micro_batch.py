"""How far a micro-batch has come through the stages, who holds what of it, and what is next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self


class Pass(NamedTuple):
    """A stage's work on a micro-batch.

    Attributes:
        stage: s.
        backward: whether it is the backward pass.
        sources: peers whose payloads it needs: the activations of the stage before; and, backward,
            the gradient of the stage after.
    """

    stage: int
    backward: bool
    sources: tuple[int, ...]


@dataclass(frozen=True)
class MicroBatch:
    """What has been done for a micro-batch, and at which peers it lies; of S stages.

    Every activation and every gradient is at one peer, until the step ends. A peer that leaves
    takes with it what it has, and that is done again if it is still needed: so each stage's
    gradient has each micro-batch exactly once, whoever fails when.

    Attributes:
        activations: who did the forward pass of each stage and has its outcome; None if nobody has.
        gradients: who did the backward pass of each stage, and has added up the weights' gradient.
        loss: whether the last stage's forward pass has been done: that is all that comes of it.
    """

    activations: tuple[int | None, ...]
    gradients: tuple[int | None, ...]
    loss: bool = False

    @classmethod
    def begin(cls, num_stages: int) -> Self:
        """Returns that of a micro-batch of which nothing is done."""
        return cls((None,) * num_stages, (None,) * num_stages)

    @property
    def complete(self) -> bool:
        """Whether every stage has its gradient."""
        return None not in self.gradients

    def next(self) -> Pass | None:
        """Returns what has to be done next; None if all is.

        The gradient of the last stage that lacks it, as those before it need what it sends; and
        before that, the activations that it needs.
        """
        last = len(self.gradients) - 1
        missing = [s for s in range(last + 1) if self.gradients[s] is None]
        if not missing:
            return None
        stage = missing[-1]
        inputs = stage - 1  # whose activations are needed
        while inputs >= 0 and self.activations[inputs] is None:
            inputs -= 1
        needed = [] if inputs < 0 else [self.activations[inputs]]
        if inputs < stage - 1:
            return _pass(inputs + 1, False, needed)
        if stage < last:
            return _pass(stage, True, [*needed, self.gradients[stage + 1]])
        return _pass(stage, self.loss, needed)

    def done(self, work: Pass, peer: int) -> Self:
        """Returns it after a peer has done what was next."""
        s = work.stage
        if work.backward:
            return replace(self, gradients=_with(self.gradients, s, peer))
        activations = _with(self.activations, s, peer)
        return replace(self, activations=activations, loss=self.loss or s == len(activations) - 1)

    def without(self, peer: int) -> Self:
        """Returns it after a peer has lost all that it had."""
        if peer not in self.activations and peer not in self.gradients:
            return self
        return replace(
            self,
            activations=tuple(None if p == peer else p for p in self.activations),
            gradients=tuple(None if p == peer else p for p in self.gradients),
        )


def _pass(stage: int, backward: bool, needed: list[int | None]) -> Pass:
    return Pass(stage, backward, tuple(peer for peer in needed if peer is not None))


def _with(holders: tuple[int | None, ...], stage: int, peer: int) -> tuple[int | None, ...]:
    return *holders[:stage], peer, *holders[stage + 1 :]
