"""Parts of a model that weak devices train: units, extraction rules, capacities, masks."""

from fl.submodels.adapter_ranks import AdapterRanks
from fl.submodels.capacity import ByMemory, Capacity, Fixed, InTurn, Redrawn
from fl.submodels.every_parameter_matters import EveryParameterMatters
from fl.submodels.extraction import Extraction, Whole
from fl.submodels.federated_dropout import FederatedDropout
from fl.submodels.fedrolex import FedRolex
from fl.submodels.filters import Filter, Filters, Resizing
from fl.submodels.heterofl import HeteroFL
from fl.submodels.matching import Orders, Partners, assigned, indices
from fl.submodels.sparse_mask import (
    Layer,
    Mask,
    SparseMask,
    by_magnitude,
    largest,
    part_of,
    shared_out,
)
from fl.submodels.sub_models import SubModels
from fl.submodels.submodel import (
    CLASSES_KEY,
    MASK_NUMBER_KEY,
    MASKS_KEY,
    OWN_CLASSES_KEY,
    Size,
    SubModel,
    masked,
    resized,
    slice_of,
)
from fl.submodels.units import (
    HasUnits,
    Place,
    Units,
    classes_of,
    importance,
    positions_of,
    units_of,
)

__all__ = [
    "CLASSES_KEY",
    "MASKS_KEY",
    "MASK_NUMBER_KEY",
    "OWN_CLASSES_KEY",
    "AdapterRanks",
    "ByMemory",
    "Capacity",
    "EveryParameterMatters",
    "Extraction",
    "FedRolex",
    "FederatedDropout",
    "Filter",
    "Filters",
    "Fixed",
    "HasUnits",
    "HeteroFL",
    "InTurn",
    "Layer",
    "Mask",
    "Orders",
    "Partners",
    "Place",
    "Redrawn",
    "Resizing",
    "Size",
    "SparseMask",
    "SubModel",
    "SubModels",
    "Units",
    "Whole",
    "assigned",
    "by_magnitude",
    "classes_of",
    "importance",
    "indices",
    "largest",
    "masked",
    "part_of",
    "positions_of",
    "resized",
    "shared_out",
    "slice_of",
    "units_of",
]
