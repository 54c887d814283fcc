"""How many entries a sparsifier keeps: a number, or a share of the entries."""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import fraction
from fl.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """Mixin with the two ways to say how many of d entries are kept.

    Attributes:
        density: share of the entries, in (0, 1]; of each tensor where the method goes by tensors.
        k: their number, at least 1; at most all are kept. Exactly one of the two is given.

    Raises:
        ConfigError: both or neither are given, or one is out of range.
    """

    density: float | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        if (self.density is None) == (self.k is None):
            raise ConfigError(
                f"density is {self.density} and k is {self.k}; give one, and null for the other"
            )
        if self.density is not None:
            fraction("density", self.density)
        if self.k is not None and self.k < 1:
            raise ConfigError(f"k is {self.k}; it must be at least 1")

    def count(self, size: int) -> int:
        """Returns how many of `size` entries are kept: at least 1 unless there are none."""
        wanted = self.k if self.k is not None else round((self.density or 0.0) * size)
        return min(max(wanted, 1), size)
