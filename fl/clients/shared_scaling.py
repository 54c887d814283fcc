"""Gradients divided by a diagonal that the server sends, as the clients of SAVIC have them.

Chezhegov, Skorik, Khachaturov, Shalagin, Avetisyan, Takac, Kholodov, Beznosikov, arXiv:2406.00846.
Hutchinson's estimate of a Hessian's diagonal as in OASIS, arXiv:2109.05198.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.clients.app.message_config import read_int
from fl.clients.correction import Correction
from fl.clients.rule import Batch, Finished, Received, Role, Scalar, State
from fl.randomness import generator

_PROBE_KEY = "savic-probe"


@dataclass(frozen=True)
class SharedScaling(Correction):
    """g <- g / D, D the record "scaling" of the message, the same for all steps of a task.

    The reply has in the record "statistic" what the next D is made of, at the received model on the
    first batch: the gradient; or, where the message has a "savic-probe", z * (Hessian z), whose
    expectation is the Hessian's diagonal, with the signs z that go with this number. That costs
    two more gradients of one batch.

    Attributes:
        clip_first: clip the batch's gradient alone, by default; otherwise the divided one.
    """

    counts_on_length: ClassVar[bool] = True

    clip_first: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """What gradients are divided by."""
        return ("scaling",)

    @property
    def uploads(self) -> tuple[str, ...]:
        """What the next one is made of."""
        return ("statistic",)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The number of the signs."""
        return {_PROBE_KEY: ()}

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns what a task with these signs is: they are those of all that train with it."""
        role = super().role(scalars)
        if _PROBE_KEY not in scalars:
            return role
        return role._replace(name=f"probe {scalars[_PROBE_KEY]}", gradients_once=2.0)

    @property
    def differentiates(self) -> bool:
        """For the curvature."""
        return True

    def vectors(self, is_plain: bool) -> int:
        """Returns 2, for D and the statistic."""
        return 2

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the number of the signs, if the message has one.

        Raises:
            ConfigError: it is no whole number.
        """
        probe = read_int(config, _PROBE_KEY, least=0)
        return {} if probe is None else {_PROBE_KEY: probe}

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns no statistic."""
        return torch.zeros_like(received.w)

    def first(self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch) -> State:
        """Returns the statistic."""
        probe = received.scalars.get(_PROBE_KEY)
        if probe is None:
            return g
        signs = generator(int(probe), "hutchinson").integers(2, size=w.shape[-1]) * 2 - 1
        z = torch.from_numpy(signs).to(w)
        return z * batch.hessian_product(w, z)

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g / D."""
        return g / received.server["scaling"], state

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns the model and the statistic."""
        return Finished(w, {"statistic": state}, {})
