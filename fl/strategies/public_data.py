"""What a server rule sees of labelled examples that the server holds itself: it learns from them.

`fl.strategies.ServerExamples` is what a run has; the rules are FedConv and ServerTraining.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from fl.submodels import SubModel


class PublicData(Protocol):
    """Labelled examples of the server's own, with the loss of the clients' model on them."""

    def fit(
        self,
        parameters: Sequence[Tensor],
        model: Callable[[], Tensor],
        part: SubModel | None,
        *,
        epochs: int,
        lr: float,
        batch_size: int,
        key: Sequence[int | str],
    ) -> None:
        """Minimises the loss of a model that is made of parameters, by Adam.

        Args:
            parameters: leaves of autograd, changed in place.
            model: makes of them a model, shape (d,), or a part of one, (d_i,), differentiably.
            part: what of the model that is; None is all.
            epochs: passes over the examples.
            lr: of Adam, whose other arguments are PyTorch's and which begins anew.
            batch_size: examples of a step.
            key: names the order of the examples, and dropout.
        """

    def draws(self, *key: int | str) -> np.random.Generator:
        """Returns the generator of whatever else is drawn, by name."""
