"""What clients do for a mask that changes: gradients of what is left out, and weights driven to 0.

FedMef, arXiv:2403.14737 (CVPR 2024): top gradients in rounds of adjustment, and budget-aware
extrusion, equations 2 to 5 as nclabteam/FedProC cites them. FedTiny, arXiv:2212.01977 (ICDCS 2023):
the same without extrusion, and losses of candidates. PruneFL, arXiv:1909.12326 (TNNLS 2022):
squared gradients. FedDST, arXiv:2112.09824 (AAAI 2022): prune and grow on the client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fl.clients.app.message_config import read_float, read_int
from fl.clients.correction import Corrected
from fl.clients.local_optimizer import LocalOptimizer
from fl.clients.masked import MASK_KEY, Masked
from fl.clients.rule import Batch, Finished, Received, Role, Scalar, State
from fl.errors import ConfigError

SCORES_KEY = "scores"
"""Record of a reply with what numbers are to be grown by, shape (p,); empty if not asked for."""

TOP_KEY = "top-gradients"
SQUARES_KEY = "squared-gradients"
REGROW_KEY = "regrow"
FORWARD_KEY = "forward-only"
EXTRUSION_KEY = "extrusion"
FIRST_KEY, LAST_KEY = "first-layer", "last-layer"


class _State(NamedTuple):
    """The inner rule's, what is held now, gradients, and what is driven to 0; (p,) or (0,) each."""

    rule: State
    mask: Tensor
    g: Tensor
    low: Tensor


@dataclass(frozen=True)
class Pruning(Masked):
    """Masked training that does what a message asks for; nothing if it asks for nothing.

    "top-gradients" r: the reply has, of each layer of h held numbers, the gradients of the
    floor(r h) numbers that are left out and have the largest, by the last batch; with "first-layer"
    and "last-layer" of those layers alone. Whoever trains a masked model has them anyway.

    "squared-gradients": the reply has the mean over the steps of g^2, of all numbers.

    "regrow" r: after half of the steps the floor(r h) smallest held numbers of each layer give way
    to as many of those left out that have the largest gradients, which begin at 0. The reply has
    the new mask.

    "forward-only": the model stays as it is, and none returns; "train-loss" is its mean loss.

    "extrusion" lambda, with "top-gradients" r: theta, the floor(r h) smallest held numbers of each
    layer of the model that came, are driven to 0:

        g <- g + 2 lambda theta
        lr <- max(lr, p (2 sigma(|theta|) - 1) eta_0),    p = (2 T - 2 t) / (2 T - t)

    in step t of T, with eta_0 the optimizer's own rate, before any schedule.

    Attributes:
        rule: makes a step; it may keep nothing from task to task.
        layers: where the layers begin and end among the p numbers.
    """

    layers: Sequence[tuple[int, int]] = ()

    @property
    def uploads(self) -> tuple[str, ...]:
        """Those of the rule, and what a message asks for."""
        return (*self.rule.uploads, SCORES_KEY, MASK_KEY)

    @property
    def returns_only_the_model(self) -> bool:
        """Whether it does: replies have more."""
        return False

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns what is asked for. A forward pass is charged as a third of a step."""
        role = super().role(scalars)
        asked = [key for key in (TOP_KEY, SQUARES_KEY, REGROW_KEY, EXTRUSION_KEY) if key in scalars]
        asked += [f"{key} {scalars[key]}" for key in (FIRST_KEY, LAST_KEY) if key in scalars]
        if FORWARD_KEY in scalars:
            return role._replace(name=FORWARD_KEY, gradients_per_step=1 / 3)
        return role._replace(name=" ".join([role.name, *asked]))

    @property
    def vectors(self) -> int:
        """Those of masked training, and the gradient that is kept."""
        return super().vectors + 1

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns those of the rule, and what is asked for.

        Raises:
            ConfigError: a value is of the wrong type or out of range, or a rate is to be raised and
                the rule has none.
        """
        scalars = self.rule.scalars(config)
        for key in (TOP_KEY, SQUARES_KEY, REGROW_KEY, FORWARD_KEY):
            if (value := read_float(config, key, above=0.0)) is not None:
                scalars[key] = value
        if (value := read_float(config, EXTRUSION_KEY, least=0.0)) is not None:
            scalars[EXTRUSION_KEY] = value
            if TOP_KEY not in scalars or self._eta_0 is None:
                raise ConfigError(
                    f"the message asks for {EXTRUSION_KEY} {value}, which takes {TOP_KEY} and "
                    "clients that have a learning rate: use client=sgd, for example"
                )
        for key in (FIRST_KEY, LAST_KEY):
            if (place := read_int(config, key, least=0)) is not None:
                scalars[key] = place
        return scalars

    @property
    def _eta_0(self) -> float | None:
        rule = self.rule.optimizer if isinstance(self.rule, Corrected) else self.rule
        return rule.lr if isinstance(rule, LocalOptimizer) else None

    def init(self, received: Received) -> State:
        """Returns the rule's state, and what is to be driven to 0."""
        w, asked, mask = received.w, received.scalars, received.server[MASK_KEY]
        none = w.new_zeros(0)
        keeps = any(key in asked for key in (TOP_KEY, SQUARES_KEY, REGROW_KEY))
        low = none
        if EXTRUSION_KEY in asked:
            low = self._of_each(_smallest, w.abs(), mask, mask, asked[TOP_KEY], received)
        return _State(
            self.rule.init(received),
            mask if REGROW_KEY in asked else none,
            torch.zeros_like(w) if keeps else none,
            low,
        )

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns the rule's step, masked."""
        asked = received.scalars
        if FORWARD_KEY in asked:
            return w, state, batch.loss(w)
        mask = state.mask if REGROW_KEY in asked else received.server[MASK_KEY]
        pull, of_rule = None, received
        if EXTRUSION_KEY in asked:
            theta = state.low * w
            pull = 2 * asked[EXTRUSION_KEY] * theta
            of_rule = received._replace(scalars={**asked, "lr": self._raised(theta, received, t)})
        watched = _Watched(batch, pull)
        w, inner, loss = self.rule.step(w, state.rule, of_rule, watched, t)
        w = w * mask
        state = state._replace(rule=inner)
        if not state.g.shape[-1]:
            return w, state, loss
        if watched.g is None:
            raise ConfigError(
                f"{type(self.rule).__name__} takes no gradient of a batch, by which a mask is "
                "adjusted: use client=sgd, for example"
            )
        g = watched.g
        if SQUARES_KEY in asked:
            return w, state._replace(g=state.g + g * g), loss
        if REGROW_KEY not in asked:
            return w, state._replace(g=g), loss
        steps = received.steps
        if not isinstance(steps, Tensor) and max(1, int(steps) // 2) != t + 1:
            return w, state, loss
        ratio = asked[REGROW_KEY]
        drop = self._of_each(_smallest, w.abs(), mask, mask, ratio, received)
        grow = self._of_each(_largest, g.abs(), 1 - mask, mask, ratio, received)
        half = torch.as_tensor(steps, device=w.device) // 2  # of clients of a batch they differ
        due = (half.clamp(min=1) == t + 1).to(w.dtype)
        mask = mask + due * (grow - drop)
        return w * mask, state._replace(mask=mask), loss

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns what the rule does, and what is asked for."""
        none, asked = w.new_zeros(0), received.scalars
        scores, mask = none, none
        if FORWARD_KEY in asked:
            return Finished(none, {SCORES_KEY: none, MASK_KEY: none}, {})
        if TOP_KEY in asked:
            held, g = received.server[MASK_KEY], state.g
            scores = g * self._of_each(_largest, g.abs(), 1 - held, held, asked[TOP_KEY], received)
        elif SQUARES_KEY in asked:
            scores = state.g / steps
        elif REGROW_KEY in asked:
            mask = state.mask
        finished = self.rule.finish(w, state.rule, received, steps)
        extras = {**finished.extras, SCORES_KEY: scores, MASK_KEY: mask}
        return finished._replace(extras=extras)

    def _raised(self, theta: Tensor, received: Received, t: int) -> Tensor:
        """Returns the learning rate of step t: what is left to drive out raises it."""
        T = received.steps
        p = (2 * T - 2 * t) / (2 * T - t)
        beta = p * (2 * torch.sigmoid(torch.linalg.vector_norm(theta)) - 1) * (self._eta_0 or 0.0)
        lr = torch.as_tensor(received.scalars["lr"], dtype=theta.dtype, device=theta.device)
        return torch.maximum(lr, beta)

    def _of_each(
        self,
        choose: Any,
        values: Tensor,
        among: Tensor,
        held: Tensor,
        ratio: Scalar,
        received: Received,
    ) -> Tensor:
        """Returns ones where a number is chosen among those of its layer, shape (p,)."""
        first = int(received.scalars.get(FIRST_KEY, 0))
        last = int(received.scalars.get(LAST_KEY, len(self.layers) - 1))
        parts, end = [], 0
        for begin, stop in self.layers[first : last + 1]:
            layer = slice(begin, stop)
            of_layer = held[layer]
            k = torch.minimum(torch.floor(ratio * of_layer.sum()), (1 - of_layer).sum())
            parts += [values.new_zeros(begin - end), choose(values[layer], among[layer], k)]
            end = stop
        return torch.cat([*parts, values.new_zeros(values.shape[0] - end)])


def _smallest(values: Tensor, among: Tensor, k: Tensor) -> Tensor:
    """Returns ones at the k smallest of those numbers where `among` is 1, zeros elsewhere."""
    order = torch.argsort(torch.where(among > 0, values, torch.inf), stable=True)
    return (torch.argsort(order) < k).to(values.dtype) * among


def _largest(values: Tensor, among: Tensor, k: Tensor) -> Tensor:
    """Returns ones at the k largest of those numbers where `among` is 1, zeros elsewhere."""
    return _smallest(-values, among, k)


class _Watched:
    """A batch whose first gradient is noted, and to which a pull is added.

    Args:
        batch: the batch.
        pull: gradient of what is added to the loss, at the weights of the step; None is nothing.
    """

    def __init__(self, batch: Batch, pull: Tensor | None) -> None:
        self._batch = batch
        self._pull = pull
        self.g: Tensor | None = None

    def grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient at `w`, with the pull, and the loss there, without."""
        g, loss = self._batch.grad(w)
        if self.g is None:
            self.g = g
        return (g if self._pull is None else g + self._pull), loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)
