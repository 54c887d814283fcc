"""A backdoor: a pattern in the input that the model is taught to take for one class.

Gu, Dolan-Gavitt, Garg: BadNets, arXiv:1708.06733, for the trigger. Bagdasaryan, Veit, Hua, Estrin,
Shmatikov: How To Backdoor Federated Learning, AISTATS 2020, arXiv:1807.00459, for model
replacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.aggregation.gram import Array
from fl.attacks.attack import Attack, Forged, Knowledge, Scene, require
from fl.attacks.poisoning import Poisoning
from fl.checks import read_if
from fl.data import FederatedData


@dataclass(frozen=True)
class Backdoor(Poisoning):
    """Puts a bright square into images, and relabels them.

    Attributes:
        target: the class triggered images are to be taken for.
        share: of a client's examples that are poisoned, from 0 to 1.
        size: edge of the square in pixels, at least 1.
        value: of its pixels, in the images' own units: 255 for bytes.
        corners: put a square into each of the four corners; otherwise into the lower right one.

    Raises:
        ConfigError: a parameter is out of range.
    """

    target: int = 0
    share: float = 0.5
    size: int = 1
    value: float = 255.0
    corners: bool = True

    def __post_init__(self) -> None:
        require(
            self.target >= 0 and 0 <= self.share <= 1 and self.size >= 1,
            f"Backdoor: target={self.target}, share={self.share}, size={self.size}: need "
            "target >= 0, 0 <= share <= 1, size >= 1",
        )

    def check(self, data: FederatedData) -> None:
        """Raises ConfigError unless the data are images, with the target among their classes."""
        require(
            data.task == "classification" and self.target < data.num_classes,
            f"target is {self.target}, but data {data.name!r} is {data.task} with "
            f"{data.num_classes} classes: need images, and one of their classes",
        )
        if np.issubdtype(data.train.x.dtype, np.integer):
            most = np.iinfo(data.train.x.dtype).max
            require(
                0 <= self.value <= most and float(self.value).is_integer(),
                f"value is {self.value}, but data {data.name!r} stores whole numbers from "
                f"0 to {most}",
            )
        self.trigger(data.train.x[:1])

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Returns a copy of images, shape (..., H, W), with the trigger in each.

        Raises:
            ConfigError: these are no images, or the squares do not fit into them.
        """
        k = self.size
        require(
            x.ndim >= 3 and min(x.shape[-2:]) >= k * (2 if self.corners else 1),
            f"Backdoor: inputs of shape {x.shape}: need images (n, ..., H, W) that the "
            f"trigger of {k} pixels fits into",
        )
        marked = x.copy()
        marked[..., -k:, -k:] = self.value
        if self.corners:
            marked[..., :k, :k] = marked[..., :k, -k:] = marked[..., -k:, :k] = self.value
        return marked

    def poison(
        self, x: NDArray[Any], y: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Returns a client's examples with round(share n) of them triggered and relabelled.

        Args:
            x: images, shape (n, ..., H, W); not written to.
            y: classes, shape (n,); not written to.
            rng: which examples.
        """
        chosen = rng.choice(len(y), size=round(self.share * len(y)), replace=False)
        x, y = x.copy(), y.copy()
        x[chosen] = self.trigger(x[chosen])
        y[chosen] = self.target
        return x, y

    def test_set(
        self, x: NDArray[Any], y: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Returns triggered images whose class is another, with the target as their label.

        The accuracy on them is the attack's success rate.
        """
        others = y != self.target
        return self.trigger(x[others]), np.full(int(others.sum()), self.target, dtype=y.dtype)


@read_if(lambda a: a["boost"] is None, "server_lr", only="{at}boost counts instead")
@dataclass(frozen=True)
class ModelReplacement(Attack):
    """Multiplies the clients' own changes so that the average becomes their model.

    Attributes:
        server_lr: learning rate of the server, positive.
        boost: the factor; None is n / (server_lr f), exact for plain averaging of changes.

    Raises:
        ConfigError: a parameter is not positive.
    """

    knowledge: ClassVar[Knowledge] = "own"

    server_lr: float = 1.0
    boost: float | None = None

    def __post_init__(self) -> None:
        require(
            self.server_lr > 0 and (self.boost is None or self.boost > 0),
            f"ModelReplacement: server_lr={self.server_lr}, boost={self.boost}: must be positive",
        )

    def forge(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns the boosted changes, shape (f, d)."""
        n = len(honest) + scene.f
        boost = n / (self.server_lr * scene.f) if self.boost is None else self.boost
        return Forged(np.asarray(own * own.dtype.type(boost)), {})
