"""Who trains in a round: selections of clients, one paper a file."""

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
