"""`fl tune`: the settings at which a method is at its best."""

from fl.runs.tuning.halving import Halving
from fl.runs.tuning.space import Point, Space

__all__ = ["Halving", "Point", "Space"]
