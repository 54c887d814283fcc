"""Aggregation rules: n vectors of a round to one, although some of them may be anything at all.

The names below are loaded when first used: a run needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.aggregation.aggregator import (
        Aggregator,
        Context,
        Fold,
        PreAggregated,
        PreAggregation,
        chained,
        check_result,
    )
    from fl.aggregation.arc import ARC
    from fl.aggregation.bucketing import Bucketing, Resampling
    from fl.aggregation.bulyan import Bulyan
    from fl.aggregation.caf import CAF
    from fl.aggregation.centered_clipping import CenteredClipping
    from fl.aggregation.faba import FABA
    from fl.aggregation.flag import FlagAggregator
    from fl.aggregation.fltrust import FLTrust
    from fl.aggregation.geometric_median import GeometricMedian
    from fl.aggregation.guard import (
        MOST_WEIGHT,
        Admitted,
        Dropped,
        Guard,
        check_weights,
        dropped_of,
        fault_of_weight,
        shown,
        weight_of,
    )
    from fl.aggregation.krum import Krum, MultiKrum
    from fl.aggregation.mda import MDA
    from fl.aggregation.meamed import MeaMed
    from fl.aggregation.mean import Mean
    from fl.aggregation.median import Median
    from fl.aggregation.monna import NearestNeighbourAveraging
    from fl.aggregation.nnm import NNM
    from fl.aggregation.norm_clipping import Clipping, NormClipping, NormElimination
    from fl.aggregation.recentred import Recentred
    from fl.aggregation.rows import Rows
    from fl.aggregation.sender_mean import SenderMean
    from fl.aggregation.sign_majority import SignMajority
    from fl.aggregation.smea import SMEA
    from fl.aggregation.trimmed_mean import TrimmedMean

__getattr__ = lazily(
    __name__,
    {
        "ARC": "fl.aggregation.arc",
        "Admitted": "fl.aggregation.guard",
        "Aggregator": "fl.aggregation.aggregator",
        "Bucketing": "fl.aggregation.bucketing",
        "Bulyan": "fl.aggregation.bulyan",
        "CAF": "fl.aggregation.caf",
        "CenteredClipping": "fl.aggregation.centered_clipping",
        "Clipping": "fl.aggregation.norm_clipping",
        "Context": "fl.aggregation.aggregator",
        "Dropped": "fl.aggregation.guard",
        "FABA": "fl.aggregation.faba",
        "FLTrust": "fl.aggregation.fltrust",
        "FlagAggregator": "fl.aggregation.flag",
        "Fold": "fl.aggregation.aggregator",
        "GeometricMedian": "fl.aggregation.geometric_median",
        "Guard": "fl.aggregation.guard",
        "Krum": "fl.aggregation.krum",
        "MDA": "fl.aggregation.mda",
        "MOST_WEIGHT": "fl.aggregation.guard",
        "MeaMed": "fl.aggregation.meamed",
        "Mean": "fl.aggregation.mean",
        "Median": "fl.aggregation.median",
        "MultiKrum": "fl.aggregation.krum",
        "NNM": "fl.aggregation.nnm",
        "NearestNeighbourAveraging": "fl.aggregation.monna",
        "NormClipping": "fl.aggregation.norm_clipping",
        "NormElimination": "fl.aggregation.norm_clipping",
        "PreAggregated": "fl.aggregation.aggregator",
        "PreAggregation": "fl.aggregation.aggregator",
        "Recentred": "fl.aggregation.recentred",
        "Resampling": "fl.aggregation.bucketing",
        "Rows": "fl.aggregation.rows",
        "SMEA": "fl.aggregation.smea",
        "SenderMean": "fl.aggregation.sender_mean",
        "SignMajority": "fl.aggregation.sign_majority",
        "TrimmedMean": "fl.aggregation.trimmed_mean",
        "chained": "fl.aggregation.aggregator",
        "check_result": "fl.aggregation.aggregator",
        "check_weights": "fl.aggregation.guard",
        "dropped_of": "fl.aggregation.guard",
        "fault_of_weight": "fl.aggregation.guard",
        "shown": "fl.aggregation.guard",
        "weight_of": "fl.aggregation.guard",
    },
)

__all__ = [
    "ARC",
    "CAF",
    "FABA",
    "MDA",
    "MOST_WEIGHT",
    "NNM",
    "SMEA",
    "Admitted",
    "Aggregator",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clipping",
    "Context",
    "Dropped",
    "FLTrust",
    "FlagAggregator",
    "Fold",
    "GeometricMedian",
    "Guard",
    "Krum",
    "MeaMed",
    "Mean",
    "Median",
    "MultiKrum",
    "NearestNeighbourAveraging",
    "NormClipping",
    "NormElimination",
    "PreAggregated",
    "PreAggregation",
    "Recentred",
    "Resampling",
    "Rows",
    "SenderMean",
    "SignMajority",
    "TrimmedMean",
    "chained",
    "check_result",
    "check_weights",
    "dropped_of",
    "fault_of_weight",
    "shown",
    "weight_of",
]
