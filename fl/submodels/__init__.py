"""Parts of a model that weak devices train: units, extraction rules, capacities, masks.

The names below are loaded when first used: a run needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
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

__getattr__ = lazily(
    __name__,
    {
        "AdapterRanks": "fl.submodels.adapter_ranks",
        "ByMemory": "fl.submodels.capacity",
        "CLASSES_KEY": "fl.submodels.submodel",
        "Capacity": "fl.submodels.capacity",
        "EveryParameterMatters": "fl.submodels.every_parameter_matters",
        "Extraction": "fl.submodels.extraction",
        "FedRolex": "fl.submodels.fedrolex",
        "FederatedDropout": "fl.submodels.federated_dropout",
        "Filter": "fl.submodels.filters",
        "Filters": "fl.submodels.filters",
        "Fixed": "fl.submodels.capacity",
        "HasUnits": "fl.submodels.units",
        "HeteroFL": "fl.submodels.heterofl",
        "InTurn": "fl.submodels.capacity",
        "Layer": "fl.submodels.sparse_mask",
        "MASKS_KEY": "fl.submodels.submodel",
        "MASK_NUMBER_KEY": "fl.submodels.submodel",
        "Mask": "fl.submodels.sparse_mask",
        "OWN_CLASSES_KEY": "fl.submodels.submodel",
        "Orders": "fl.submodels.matching",
        "Partners": "fl.submodels.matching",
        "Place": "fl.submodels.units",
        "Redrawn": "fl.submodels.capacity",
        "Resizing": "fl.submodels.filters",
        "Size": "fl.submodels.submodel",
        "SparseMask": "fl.submodels.sparse_mask",
        "SubModel": "fl.submodels.submodel",
        "SubModels": "fl.submodels.sub_models",
        "Units": "fl.submodels.units",
        "Whole": "fl.submodels.extraction",
        "assigned": "fl.submodels.matching",
        "by_magnitude": "fl.submodels.sparse_mask",
        "classes_of": "fl.submodels.units",
        "importance": "fl.submodels.units",
        "indices": "fl.submodels.matching",
        "largest": "fl.submodels.sparse_mask",
        "masked": "fl.submodels.submodel",
        "part_of": "fl.submodels.sparse_mask",
        "positions_of": "fl.submodels.units",
        "resized": "fl.submodels.submodel",
        "shared_out": "fl.submodels.sparse_mask",
        "slice_of": "fl.submodels.submodel",
        "units_of": "fl.submodels.units",
    },
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
