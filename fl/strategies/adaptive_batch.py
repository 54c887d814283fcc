"""Batches that grow while the gradient's noise exceeds its size: the norm test.

Lau, Liu, Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
arXiv:2402.11215; the test as in the authors' code (timlautk/AdAdaGrad), with the two estimates of
arXiv:1812.06162 for the sample variance and the mean's square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
class NormTest:
    """Grows clients' batches, or the number of clients, after the rounds that ask for it.

        T = tr(Sigma) / (eta^2 |G|^2)
        S b <- max(S b, T),    at most `growth` times S b, and not beyond `most`

    with Sigma the covariance of one example's gradient and G the gradient, measured over rounds by
    `NoiseScale`: T is the noise scale over eta^2. A step of S b >= T examples has a gradient whose
    error is at most eta |G| in the mean square. The paper takes the sample variance within one
    batch, divided by the square of that batch's own mean; this cannot ask for more than 1 / eta^2
    times the batch, which `growth` does here, also while the average of |G|^2 is not positive. Here
    the variance is that between clients, and data that differs from client to client enters it.

    The batch never shrinks. Rates stay as they are: the paper's optimizers are AdaGrad's, on the
    server `strategy=fedadagrad`.

    Attributes:
        most: the largest b, or S; at least 1.
        eta: relative error of the gradient that is allowed, above 0; 0.1 and 0.5 in the paper.
        growth: largest factor from one round to the next, above 1.
        grows: "batch" or "clients".

    Raises:
        ConfigError: an argument is out of its range.
    """

    most: int
    eta: float = 0.5
    growth: float = 2.0
    grows: Literal["batch", "clients"] = "batch"

    def __post_init__(self) -> None:
        at_least("most", self.most, 1)
        for name, value, bound in (("eta", self.eta, 0), ("growth", self.growth, 1)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not bound < value < math.inf:
                raise ConfigError(f"{name} is {value!r}; it must be finite and above {bound}")
        if self.grows not in ("batch", "clients"):
            raise ConfigError(f"grows is {self.grows!r}; it must be 'batch' or 'clients'")

    def wanted(self, noise: Noise) -> float:
        """Returns T, examples that a step needs; infinity while |G|^2 is lost in the noise."""
        if not noise.weight or noise.trace <= 0:
            return 0.0
        return noise.trace / (self.eta**2 * noise.square) if noise.square > 0 else math.inf

    def after(self, batch: RoundSize, noise: Noise) -> RoundSize:
        """Returns the batch of the next round.

        Args:
            batch: of the last one, with a size.
            noise: as it has been measured with that.
        """
        if batch.size is None:
            return batch
        if self.grows == "clients":
            return batch._replace(clients=self._grown(batch.clients, batch.size, noise))
        return batch._replace(size=self._grown(batch.size, batch.clients, noise))

    def _grown(self, n: int, times: int, noise: Noise) -> int:
        """Returns how many make `times` as many examples as the test asks for, within bounds."""
        wanted = min(self.wanted(noise) / times, n * self.growth, self.most)
        return max(n, math.ceil(wanted))
