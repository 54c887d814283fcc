"""Parts of a model that weak devices train: units, extraction rules, capacities."""

from fl.submodels.capacity import ByMemory, Capacity, Fixed, InTurn, Redrawn
from fl.submodels.every_parameter_matters import EveryParameterMatters
from fl.submodels.extraction import Extraction, Whole
from fl.submodels.federated_dropout import FederatedDropout
from fl.submodels.fedrolex import FedRolex
from fl.submodels.heterofl import HeteroFL
from fl.submodels.sub_models import SubModels
from fl.submodels.submodel import MASKS_KEY, Size, SubModel, masked, resized, slice_of
from fl.submodels.units import HasUnits, Place, Units, importance, units_of

__all__ = [
    "MASKS_KEY",
    "ByMemory",
    "Capacity",
    "EveryParameterMatters",
    "Extraction",
    "FedRolex",
    "FederatedDropout",
    "Fixed",
    "HasUnits",
    "HeteroFL",
    "InTurn",
    "Place",
    "Redrawn",
    "Size",
    "SubModel",
    "SubModels",
    "Units",
    "Whole",
    "importance",
    "masked",
    "resized",
    "slice_of",
    "units_of",
]
