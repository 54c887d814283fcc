"""Client rules, and the ClientApp that runs any of them.

A rule is `init`, `step` and `finish` on flat vectors (`fl.clients.rule`), most often a local
optimizer, whose gradients may be corrected (`fl.clients.correction`). `TrainingApp` runs it for one
client at a time, on the simulator as on a real SuperNode, or for many at once.

The names below are loaded when first used: a rule by itself is read and tested without Flower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.clients.adamw import AdamW
    from fl.clients.anchor_sampling import AnchorSampling
    from fl.clients.apfl import APFL
    from fl.clients.app.batched import gains_from_batching
    from fl.clients.app.downlink import Downlink
    from fl.clients.app.island import Fragments, Island
    from fl.clients.app.partial_app import PartialApp
    from fl.clients.app.replica import Replica
    from fl.clients.app.stage_app import StageApp
    from fl.clients.app.task_app import TaskApp
    from fl.clients.app.training_app import TrainingApp
    from fl.clients.app.uplink import Uplink
    from fl.clients.coded_gradient import CodedGradient
    from fl.clients.conservative import Conservative
    from fl.clients.contact import Contact, DriftNoticed, Periodic, Plateau
    from fl.clients.correction import Corrected, Correction
    from fl.clients.ditto import Ditto
    from fl.clients.estimator import (
        BlockWise,
        EstimatedBatch,
        Estimator,
        ForwardGradient,
        Projected,
        TwoPoint,
    )
    from fl.clients.feddyn import DynamicRegularization
    from fl.clients.global_momentum import ControlledMomentum, GlobalMomentum
    from fl.clients.gradient import Direction, Gradient
    from fl.clients.hypergradient import Hypergradient
    from fl.clients.local_first import LocalFirst
    from fl.clients.local_layers import (
        LastLayers,
        LocalLayers,
        LowerLayers,
        NamedLayers,
        NormLayers,
    )
    from fl.clients.local_optimizer import Descent, LocalOptimizer
    from fl.clients.masked import Masked
    from fl.clients.microadam import MicroAdam
    from fl.clients.momentum import Momentum
    from fl.clients.moon import ModelContrast
    from fl.clients.muon import Muon
    from fl.clients.per_fedavg import PerFedAvg
    from fl.clients.pfedme import MoreauEnvelope
    from fl.clients.proximal import Proximal
    from fl.clients.proximal_own import ProximalOwn
    from fl.clients.proxskip import ProxSkipShift
    from fl.clients.pruning import Pruning
    from fl.clients.rule import Batch, Finished, Received, Rule
    from fl.clients.sam import Sam
    from fl.clients.scaffold import ControlVariates
    from fl.clients.schedule import CosineDecay, ExponentialDecay, Schedule, StepDecay, Warmup
    from fl.clients.sgd import Sgd
    from fl.clients.shared_scaling import SharedScaling

__getattr__ = lazily(
    __name__,
    {
        "APFL": "fl.clients.apfl",
        "AdamW": "fl.clients.adamw",
        "AnchorSampling": "fl.clients.anchor_sampling",
        "Batch": "fl.clients.rule",
        "BlockWise": "fl.clients.estimator",
        "Conservative": "fl.clients.conservative",
        "Contact": "fl.clients.contact",
        "ControlVariates": "fl.clients.scaffold",
        "ControlledMomentum": "fl.clients.global_momentum",
        "Corrected": "fl.clients.correction",
        "Correction": "fl.clients.correction",
        "CosineDecay": "fl.clients.schedule",
        "Ditto": "fl.clients.ditto",
        "Descent": "fl.clients.local_optimizer",
        "Direction": "fl.clients.gradient",
        "Downlink": "fl.clients.app.downlink",
        "DriftNoticed": "fl.clients.contact",
        "DynamicRegularization": "fl.clients.feddyn",
        "EstimatedBatch": "fl.clients.estimator",
        "Estimator": "fl.clients.estimator",
        "ExponentialDecay": "fl.clients.schedule",
        "Finished": "fl.clients.rule",
        "ForwardGradient": "fl.clients.estimator",
        "Fragments": "fl.clients.app.island",
        "GlobalMomentum": "fl.clients.global_momentum",
        "CodedGradient": "fl.clients.coded_gradient",
        "Gradient": "fl.clients.gradient",
        "Hypergradient": "fl.clients.hypergradient",
        "Island": "fl.clients.app.island",
        "LastLayers": "fl.clients.local_layers",
        "LocalFirst": "fl.clients.local_first",
        "LocalLayers": "fl.clients.local_layers",
        "LocalOptimizer": "fl.clients.local_optimizer",
        "LowerLayers": "fl.clients.local_layers",
        "Masked": "fl.clients.masked",
        "MicroAdam": "fl.clients.microadam",
        "ModelContrast": "fl.clients.moon",
        "Muon": "fl.clients.muon",
        "Momentum": "fl.clients.momentum",
        "MoreauEnvelope": "fl.clients.pfedme",
        "NamedLayers": "fl.clients.local_layers",
        "NormLayers": "fl.clients.local_layers",
        "PartialApp": "fl.clients.app.partial_app",
        "PerFedAvg": "fl.clients.per_fedavg",
        "Periodic": "fl.clients.contact",
        "Plateau": "fl.clients.contact",
        "Projected": "fl.clients.estimator",
        "ProxSkipShift": "fl.clients.proxskip",
        "Proximal": "fl.clients.proximal",
        "ProximalOwn": "fl.clients.proximal_own",
        "Pruning": "fl.clients.pruning",
        "Received": "fl.clients.rule",
        "Replica": "fl.clients.app.replica",
        "Rule": "fl.clients.rule",
        "Sam": "fl.clients.sam",
        "Schedule": "fl.clients.schedule",
        "Sgd": "fl.clients.sgd",
        "SharedScaling": "fl.clients.shared_scaling",
        "StageApp": "fl.clients.app.stage_app",
        "StepDecay": "fl.clients.schedule",
        "TaskApp": "fl.clients.app.task_app",
        "TrainingApp": "fl.clients.app.training_app",
        "TwoPoint": "fl.clients.estimator",
        "Uplink": "fl.clients.app.uplink",
        "Warmup": "fl.clients.schedule",
        "gains_from_batching": "fl.clients.app.batched",
    },
)

__all__ = [
    "APFL",
    "AdamW",
    "AnchorSampling",
    "Batch",
    "BlockWise",
    "CodedGradient",
    "Conservative",
    "Contact",
    "ControlVariates",
    "ControlledMomentum",
    "Corrected",
    "Correction",
    "CosineDecay",
    "Descent",
    "Direction",
    "Ditto",
    "Downlink",
    "DriftNoticed",
    "DynamicRegularization",
    "EstimatedBatch",
    "Estimator",
    "ExponentialDecay",
    "Finished",
    "ForwardGradient",
    "Fragments",
    "GlobalMomentum",
    "Gradient",
    "Hypergradient",
    "Island",
    "LastLayers",
    "LocalFirst",
    "LocalLayers",
    "LocalOptimizer",
    "LowerLayers",
    "Masked",
    "MicroAdam",
    "ModelContrast",
    "Momentum",
    "MoreauEnvelope",
    "Muon",
    "NamedLayers",
    "NormLayers",
    "PartialApp",
    "PerFedAvg",
    "Periodic",
    "Plateau",
    "Projected",
    "ProxSkipShift",
    "Proximal",
    "ProximalOwn",
    "Pruning",
    "Received",
    "Replica",
    "Rule",
    "Sam",
    "Schedule",
    "Sgd",
    "SharedScaling",
    "StageApp",
    "StepDecay",
    "TaskApp",
    "TrainingApp",
    "TwoPoint",
    "Uplink",
    "Warmup",
    "gains_from_batching",
]
