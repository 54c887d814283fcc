"""A Little Is Enough (ALIE): a shift that hides in the honest vectors' variance.

Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For Distributed Learning,
NeurIPS 2019, arXiv:1902.06156.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

from fl.aggregation.gram import Array
from fl.attacks.attack import Knowledge, LineAttack, Scene, require


def largest_hidden_z(n: int, f: int) -> float:
    """Returns the paper's z: the shift in deviations that s honest clients exceed.

    s = floor(n / 2 + 1) - f clients must side with the f for a majority, and
    z = Phi^-1((n - f - s) / (n - f)). It is 0 for some n and f, for example (10, 2), where the
    attack is the honest mean and does no harm, and negative for smaller f, where it does good.

    Args:
        n: all clients.
        f: the Byzantine ones, at most n / 2.

    Raises:
        ConfigError: n is below 3, or f a majority: there is nobody to convince.
    """
    s = n // 2 + 1 - f
    require(
        0 < s < n - f,
        f"ALIE: n={n} clients, f={f} Byzantine: z is defined for n >= 3 and f <= n / 2: set z "
        "yourself",
    )
    return NormalDist().inv_cdf((n - f - s) / (n - f))


@dataclass(frozen=True)
class ALIE(LineAttack):
    """Sends mean - z std of the honest vectors, coordinate by coordinate.

    Departure: mean and deviation are those of the honest vectors; in the paper the Byzantine
    clients estimate them from their own data.

    Attributes:
        z: shift in deviations; None is the paper's, from n and f (see `largest_hidden_z`).
        ddof: of the deviation: 0 divides by h, as the authors' code, 1 by h - 1, as most others.
        sign: -1 shifts against the mean's own sign convention, as the paper does; 1 is ByzFL's.

    Raises:
        ConfigError: a parameter is none of these; or there are not more honest vectors than ddof.
    """

    knowledge: ClassVar[Knowledge] = "honest-vectors"

    z: float | None = None
    ddof: Literal[0, 1] = 0
    sign: Literal[-1, 1] = -1

    def __post_init__(self) -> None:
        require(self.ddof in (0, 1), f"ALIE: ddof={self.ddof}: must be 0 or 1")
        require(self.sign in (-1, 1), f"ALIE: sign={self.sign}: must be -1 or 1")
        number = isinstance(self.z, int | float) and not isinstance(self.z, bool)
        require(self.z is None or number, f"ALIE: z={self.z!r}: must be a number, or null")

    def line(self, honest: Array) -> tuple[Array, Array]:
        """Returns the mean and the signed deviation."""
        require(
            len(honest) > self.ddof,
            f"ALIE: {len(honest)} honest vectors: a deviation with ddof={self.ddof} needs more",
        )
        return honest.mean(axis=0), self.sign * honest.std(axis=0, ddof=self.ddof)

    def own_factor(self, honest: Array, scene: Scene) -> float:
        """Returns z."""
        return largest_hidden_z(len(honest) + scene.f, scene.f) if self.z is None else self.z
