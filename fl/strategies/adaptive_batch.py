"""Batches that grow while the gradient's noise exceeds its size: by three tests of the gradient.

Lau, Liu, Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
arXiv:2402.11215; the tests as in the authors' code (timlautk/AdAdaGrad), with the two estimates of
arXiv:1812.06162 for the sample variance and the mean's square. Inner-product and orthogonality test
are of Bollapragada, Byrd, Nocedal, "Adaptive Sampling Strategies for Stochastic Optimization",
arXiv:1710.11258.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from fl.checks import at_least
from fl.errors import ConfigError
from fl.strategies.noise_scale import Noise


class RoundSize(NamedTuple):
    """What a round's step is made of.

    Attributes:
        size: b, examples of a client's step; None is all of its examples.
        clients: S.
    """

    size: int | None
    clients: int


@dataclass(frozen=True)
class BatchTest(ABC):
    """Grows clients' batches, or the number of clients, after the rounds that ask for it.

        S b <- max(S b, T),    at most `growth` times S b, and not beyond `most`

    with T the examples that the test wants for a step. The batch never shrinks. Rates stay as they
    are: the paper's optimizers are AdaGrad's, on the server `strategy=fedadagrad`.

    The paper takes variances within one batch, and the square of that batch's own mean; T cannot
    exceed 1 / eta^2 times the batch by that, which `growth` does here, also while the average of
    |G|^2 is not positive. Here variances are those between clients, and data that differs from
    client to client enters them.

    Attributes:
        most: the largest b, or S; at least 1.
        growth: largest factor from one round to the next, above 1.
        grows: "batch" or "clients".

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_inner: ClassVar[bool] = False
    """Whether it reads `Noise.along`, for which a round's changes must be held all at once."""

    most: int
    growth: float = 2.0
    grows: Literal["batch", "clients"] = "batch"

    def __post_init__(self) -> None:
        at_least("most", self.most, 1)
        _above("growth", self.growth, 1)
        if self.grows not in ("batch", "clients"):
            raise ConfigError(f"grows is {self.grows!r}; it must be 'batch' or 'clients'")

    @abstractmethod
    def wanted(self, noise: Noise) -> float:
        """Returns T; infinity while |G|^2 is lost in the noise."""

    def after(self, size: RoundSize, noise: Noise) -> RoundSize:
        """Returns what the next round is made of.

        Args:
            size: of the last one, with a batch size.
            noise: as it has been measured with that.
        """
        if size.size is None:
            return size
        if self.grows == "clients":
            return size._replace(clients=self._grown(size.clients, size.size, noise))
        return size._replace(size=self._grown(size.size, size.clients, noise))

    def _grown(self, n: int, times: int, noise: Noise) -> int:
        """Returns how many make `times` as many examples as the test asks for, within bounds."""
        wanted = min(self.wanted(noise) / times, n * self.growth, self.most)
        return max(n, math.ceil(wanted))


@dataclass(frozen=True)
class NormTest(BatchTest):
    """T = tr(Sigma) / (eta^2 |G|^2), the noise scale over eta^2.

    A step of S b >= T examples has a gradient whose error is at most eta |G| in the mean square.
    Sigma is the covariance of one example's gradient and G the gradient, measured over rounds by
    `NoiseScale`.

    Attributes:
        eta: relative error of the gradient that is allowed, above 0; 0.1 and 0.5 in the paper.
    """

    eta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _above("eta", self.eta, 0)

    def wanted(self, noise: Noise) -> float:
        """Returns the noise scale over eta^2."""
        return _quotient(noise.trace, self.eta, noise)


@dataclass(frozen=True)
class InnerProductTest(BatchTest):
    """T = Var<g, G> / (theta^2 |G|^4), with g one example's gradient.

    A step of so many examples has a gradient whose component along G is right up to theta |G| in
    the mean square; errors across it, which the norm test counts, do not matter. With `nu` the
    orthogonality test bounds these as well, and T is what both want, the augmented test:

        T = max(Var<g, G> / (theta^2 |G|^4),  E|g - <g, G> / |G|^2 G|^2 / (nu^2 |G|^2))

    Of large models the changes of a round are held all at once for it.

    Attributes:
        theta: relative error that is allowed along the gradient, above 0; 0.5 in the paper.
        nu: the same across the gradient, above 0; 1 in the paper. None allows any.
    """

    reads_inner: ClassVar[bool] = True

    theta: float = 0.5
    nu: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _above("theta", self.theta, 0)
        if self.nu is not None:
            _above("nu", self.nu, 0)

    def wanted(self, noise: Noise) -> float:
        """Returns the variances along and across the gradient, each over what is allowed of it."""
        along = _quotient(noise.along, self.theta, noise)
        if self.nu is None:
            return along
        return max(along, _quotient(noise.trace - noise.along, self.nu, noise))


def _quotient(variance: float, error: float, noise: Noise) -> float:
    if not noise.weight or variance <= 0:
        return 0.0
    return variance / noise.square / error / error if noise.square > 0 else math.inf


def _above(name: str, value: float, bound: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not bound < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be finite and above {bound}")
