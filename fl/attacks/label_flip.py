"""Label flipping: clients train honestly, on wrong labels.

Tolpegin, Truex, Gursoy, Liu: Data Poisoning Attacks Against Federated Learning Systems, ESORICS
2020, arXiv:2007.08432. This is the form in which a Byzantine client needs to know nothing: it
changes its own data. ByzFL instead lets honest clients compute gradients on flipped labels, and
sends the mean of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.attacks.attack import require
from fl.attacks.poisoning import Poisoning
from fl.data import FederatedData


@dataclass(frozen=True)
class LabelFlip(Poisoning):
    """y becomes (C - 1) - y, or what a table says.

    Attributes:
        num_classes: C, at least 2.
        table: the new label of each class, length C; None reverses the order. For a pair a -> b,
            the identity with entry a replaced.

    Raises:
        ConfigError: there are fewer than two classes; the table has another length or other labels.
    """

    num_classes: int
    table: Sequence[int] | None = None

    def __post_init__(self) -> None:
        C = self.num_classes
        require(C >= 2, f"LabelFlip: num_classes={C}: must be at least 2")
        if self.table is not None:
            require(
                len(self.table) == C and all(0 <= label < C for label in self.table),
                f"LabelFlip: table={list(self.table)}: must have {C} labels from 0 to {C - 1}",
            )

    def check(self, data: FederatedData) -> None:
        """Raises ConfigError unless the data has C classes, of which an example has one."""
        require(
            data.task in ("classification", "next-token"),
            f"data {data.name!r} is of task {data.task}, and examples have no class to flip: use "
            "another attack",
        )
        require(
            data.num_classes == self.num_classes,
            f"num_classes is {self.num_classes}, but data {data.name!r} has {data.num_classes} "
            "classes: set it to that",
        )

    def poison(
        self, x: NDArray[Any], y: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Returns the inputs as they are, and the new labels of all of them."""
        return x, self(y)

    def __call__(self, y: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the new labels, in the shape of `y`, which is not written to.

        Raises:
            ConfigError: a label is not one of the C.
        """
        C = self.num_classes
        require(
            y.size == 0 or (int(y.min()) >= 0 and int(y.max()) < C),
            f"LabelFlip: labels reach from {y.min(initial=0)} to {y.max(initial=0)}: must be "
            f"from 0 to {C - 1}",
        )
        if self.table is None:
            return (C - 1) - y
        return np.asarray(self.table, dtype=y.dtype)[y]
