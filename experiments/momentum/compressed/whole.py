"""SCAFFOLD whose control variates no compressor takes: fl strategy.rule._target_=..."""

from __future__ import annotations

from typing import ClassVar

from fl.strategies import SCAFFOLD


class WholeControlVariates(SCAFFOLD):
    """Its model's changes alone are compressed."""

    exact: ClassVar[tuple[str, ...]] = ("c", "delta_c")
