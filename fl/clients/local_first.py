"""Local layers first, then the others, as the clients of FedRep train.

Collins, Hassani, Mokhtari, Shakkottai: Exploiting Shared Representations for Personalized Federated
Learning, ICML 2021, arXiv:2102.07078, Algorithm 1; authors' code lgcollins/FedRep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl.clients.local_optimizer import LocalOptimizer, clip
from fl.clients.rule import Batch, Finished, Received, Rule, Scalar, State


@dataclass(frozen=True)
class LocalFirst(Rule):
    """A local optimizer that moves the local layers in a task's first steps, then all others.

        K_h = share K of the K steps:  h <- update(h, gradient in h at (b, h))     b stands still
        the other steps:               b <- update(b, gradient in b at (b, h))     h stands still

    h are the numbers of `Received.local`, b those that the server has. So b meets the new h. What
    stands still does so with weight decay and momentum too: each part has a state of the optimizer,
    a memory, and a schedule of steps of its own. A step is charged a whole gradient, though that of
    h alone is less work.

    Without local layers all steps but the first K_h move the model.

    Attributes:
        optimizer: makes a step of a gradient.
        share: of the steps, in [0, 1]; K_h is rounded to the nearest number, ties to the even one.
            Unless it is 0 or 1 each part has a step: b has the only one of a task of one.
    """

    optimizer: LocalOptimizer
    share: float

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """Those of the optimizer."""
        return self.optimizer.honours

    @property
    def batchable(self) -> bool:
        """No: which part a client moves goes by its own number of steps."""
        return False

    @property
    def gradients_per_step(self) -> float:
        """Those of the optimizer."""
        return self.optimizer.gradients_per_step

    @property
    def vectors(self) -> int:
        """Those of the optimizer, once for each part."""
        return 2 * self.optimizer.vectors

    @property
    def returns_only_the_model(self) -> bool:
        """Whether the optimizer does."""
        return self.optimizer.returns_only_the_model

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns those of the optimizer."""
        return self.optimizer.scalars(config)

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns the optimizer's, once for each part."""
        memory = self.optimizer.first_memory(w, scalars)
        return {f"{part}.{name}": x for part in ("h", "b") for name, x in memory.items()}

    def init(self, received: Received) -> State:
        """Returns a state of the optimizer for h, and one for b."""
        return tuple(self.optimizer.init(_of_part(received, part)) for part in ("h", "b"))

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns (w, states, loss) after a step of h or of b."""
        of_h, of_b = state
        local = torch.zeros_like(w, dtype=torch.bool) if received.local is None else received.local
        head_steps = self._head_steps(received)
        if t < head_steps:
            w, of_h, loss = self._moved(w, of_h, _of_part(received, "h"), batch, local, t)
        else:
            own = t - head_steps
            w, of_b, loss = self._moved(w, of_b, _of_part(received, "b"), batch, ~local, own)
        return w, (of_h, of_b), loss

    def _head_steps(self, received: Received) -> int:
        """Returns K_h."""
        steps = int(received.steps)
        head_steps = round(self.share * steps)
        return min(max(head_steps, 1), steps - 1) if 0 < self.share < 1 else head_steps

    def _moved(
        self, w: Tensor, state: State, received: Received, batch: Batch, moving: Tensor, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns w after a step of what moves, the state of that part, and the loss."""
        g, loss = self.optimizer.gradient(w, _PartialBatch(batch, moving))
        g = clip(g, self.optimizer.clip_norm)
        stepped, state = self.optimizer.update(w, g, state, received, t)
        return torch.where(moving, stepped, w), state, loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model, and what the optimizer keeps of each part."""
        head_steps = min(self._head_steps(received), int(steps))
        done = {"h": head_steps, "b": steps - head_steps}
        memory = {}
        for (part, own_steps), own in zip(done.items(), state, strict=True):
            kept = self.optimizer.finish(w, own, _of_part(received, part), own_steps).memory
            memory.update({f"{part}.{name}": x for name, x in kept.items()})
        return Finished(w, {}, memory)


def _of_part(received: Received, part: str) -> Received:
    """Returns what a client received, with the memory of one part."""
    begin = f"{part}."
    memory = {
        name.removeprefix(begin): x for name, x in received.memory.items() if name.startswith(begin)
    }
    return received._replace(memory=memory)


@dataclass(frozen=True)
class _PartialBatch:
    """A mini-batch whose gradients are zero where numbers stand still."""

    whole: Batch
    moving: Tensor

    @property
    def examples(self) -> Scalar:
        return self.whole.examples

    @property
    def own(self) -> Batch:
        return _PartialBatch(self.whole.own, self.moving)

    def grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        g, loss = self.whole.grad(w)
        return torch.where(self.moving, g, 0.0), loss

    def loss(self, w: Tensor) -> Tensor:
        return self.whole.loss(w)

    def losses(self, *points: Tensor) -> tuple[Tensor, ...]:
        return self.whole.losses(*points)

    def hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        return self.whole.hessian_product(w, v * self.moving) * self.moving

    def features(self, w: Tensor) -> Tensor:
        return self.whole.features(w)

    def features_grad(self, loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self.whole.features_grad(loss, w) * self.moving
