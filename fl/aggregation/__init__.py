"""Aggregation rules: n vectors of a round to one, although some of them may be anything at all."""

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
