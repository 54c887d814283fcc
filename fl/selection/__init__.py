"""Who trains in a round: selections of clients, one paper a file.

The names below are loaded when first used: a run needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.selection.by_charge import ByCharge
    from fl.selection.clustered import ClusteredBySimilarity, ClusteredBySize
    from fl.selection.oort import Oort
    from fl.selection.power_of_choice import PowerOfChoice
    from fl.selection.selection import (
        Ask,
        Choice,
        Opening,
        Reply,
        RoundEnd,
        Selection,
        Trial,
        sample,
        weighted_sample,
    )
    from fl.selection.tifl import TiFL
    from fl.selection.uniform import UniformSampling

__getattr__ = lazily(
    __name__,
    {
        "Ask": "fl.selection.selection",
        "ByCharge": "fl.selection.by_charge",
        "Choice": "fl.selection.selection",
        "ClusteredBySimilarity": "fl.selection.clustered",
        "ClusteredBySize": "fl.selection.clustered",
        "Oort": "fl.selection.oort",
        "Opening": "fl.selection.selection",
        "PowerOfChoice": "fl.selection.power_of_choice",
        "Reply": "fl.selection.selection",
        "RoundEnd": "fl.selection.selection",
        "Selection": "fl.selection.selection",
        "TiFL": "fl.selection.tifl",
        "Trial": "fl.selection.selection",
        "UniformSampling": "fl.selection.uniform",
        "sample": "fl.selection.selection",
        "weighted_sample": "fl.selection.selection",
    },
)

__all__ = [
    "Ask",
    "ByCharge",
    "Choice",
    "ClusteredBySimilarity",
    "ClusteredBySize",
    "Oort",
    "Opening",
    "PowerOfChoice",
    "Reply",
    "RoundEnd",
    "Selection",
    "TiFL",
    "Trial",
    "UniformSampling",
    "sample",
    "weighted_sample",
]
