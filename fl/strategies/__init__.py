"""Server algorithms, one paper a file; `fl.strategies.drivers` runs them.

The names below are loaded when first used: a rule by itself is read and tested without Flower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.strategies.adaptive_batch import BatchTest, InnerProductTest, NormTest
    from fl.strategies.adpsgd import ADPSGD
    from fl.strategies.async_diloco import AsyncDiLoCo, DelayedNesterov
    from fl.strategies.async_fedavg import AsyncFedAvg
    from fl.strategies.async_sgd import AsyncSGD
    from fl.strategies.backup_workers import BackupWorkers
    from fl.strategies.beer import BEER
    from fl.strategies.ca2fl import CA2FL
    from fl.strategies.cdfl import CDFL
    from fl.strategies.cephalo import Cephalo
    from fl.strategies.checkfree import CheckFree, CheckFreePlus
    from fl.strategies.choco import CHOCO
    from fl.strategies.clusters import Clusters
    from fl.strategies.co2 import CO2
    from fl.strategies.coded_scheme import CodedScheme
    from fl.strategies.coded_times import CodedTimes, fastest, replayed
    from fl.strategies.d2 import D2
    from fl.strategies.data_parallel import DataParallel
    from fl.strategies.dbw import DBW
    from fl.strategies.dedloc import DeDLOC
    from fl.strategies.dfedavg import DFedAvg
    from fl.strategies.diloco import DiLoCo
    from fl.strategies.dimat import DIMAT
    from fl.strategies.dpsgd import DPSGD
    from fl.strategies.drivers.driver import Driver, Traits
    from fl.strategies.drivers.events.asynchronous import Events
    from fl.strategies.drivers.events.polling import Polling
    from fl.strategies.drivers.events.regions import Regions
    from fl.strategies.drivers.events.simultaneous import SimultaneousEvents, SimultaneousRounds
    from fl.strategies.drivers.exchange import Exchange
    from fl.strategies.drivers.foreign import Foreign, driver_of
    from fl.strategies.drivers.outer.collaboration import Collaboration
    from fl.strategies.drivers.outer.outer import OuterSteps
    from fl.strategies.drivers.peers.decentralized import Decentralized
    from fl.strategies.drivers.peers.gossip import Gossip
    from fl.strategies.drivers.peers.node_models import NODE_METRICS, NodeModels
    from fl.strategies.drivers.peers.pairs import Pairs
    from fl.strategies.drivers.peers.sampled import Sampled
    from fl.strategies.drivers.peers.walks import Walks
    from fl.strategies.drivers.proxy_losses import ProxyLosses
    from fl.strategies.drivers.rounds.cluster_models import ClusterModels
    from fl.strategies.drivers.rounds.rounds import Rounds
    from fl.strategies.drivers.server_examples import ServerExamples
    from fl.strategies.drivers.stages.petals import Petals
    from fl.strategies.drivers.stages.pipeline import Pipeline
    from fl.strategies.drivers.stages.swarm_pipelines import SWARM
    from fl.strategies.drivers.trusted_update import TrustedUpdate
    from fl.strategies.drivers.workers.coded import CodedRounds
    from fl.strategies.drivers.workers.parameter_server import ParameterServer
    from fl.strategies.drivers.workers.replicas import Replicas
    from fl.strategies.eager_updates import DelayedUpdates, EagerUpdates
    from fl.strategies.event_rule import Answers, Arrivals, Decision, EventRule, PollingRule
    from fl.strategies.extra import EXTRA
    from fl.strategies.fadas import FADAS
    from fl.strategies.favas import FAVAS
    from fl.strategies.fedamd import FedAMD
    from fl.strategies.fedamsgrad import FedAMSGrad
    from fl.strategies.fedast import FedAST
    from fl.strategies.fedasync import FedAsync
    from fl.strategies.fedau import FedAU
    from fl.strategies.fedavg import FedAvg
    from fl.strategies.fedavgm import FedAvgM
    from fl.strategies.fedbuff import FedBuff
    from fl.strategies.fedcompass import FedCompass
    from fl.strategies.fedconv import FedConv
    from fl.strategies.feddst import FedDST
    from fl.strategies.feddyn import FedDyn
    from fl.strategies.fedfix import FedFix
    from fl.strategies.fedhyper import FedHyperCL, FedHyperG, FedHyperSL
    from fl.strategies.fedmef import FedMef
    from fl.strategies.fednova import FedNova
    from fl.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
    from fl.strategies.fedprox import FedProx
    from fl.strategies.fedsoft import FedSoft
    from fl.strategies.fedspeed import FedSpeed
    from fl.strategies.fedtiny import FedTiny
    from fl.strategies.fedvarp import FedVARP
    from fl.strategies.flexlora import FlexLoRA
    from fl.strategies.global_momentum import FedAvgMomentum, SCAFFOLDMomentum
    from fl.strategies.gossip_rule import GossipRule, LocalTraining, MergingRule, PairRule, TreeRule
    from fl.strategies.gradient_codes import CyclicCode, GradientCode, RepetitionCode
    from fl.strategies.gradient_coding import GradientCoding
    from fl.strategies.gradient_rule import GradientRule
    from fl.strategies.gradient_tracking import GradientTracking
    from fl.strategies.halos import HALoS
    from fl.strategies.hierfavg import HierFAVG
    from fl.strategies.ifca import IFCA
    from fl.strategies.local_sgd import LocalSGD
    from fl.strategies.mifa import MIFA
    from fl.strategies.monna import MoNNA
    from fl.strategies.multi_momentum import MultiMomentum
    from fl.strategies.noise_scale import NoiseScale
    from fl.strategies.optex import OptEx
    from fl.strategies.outer_optimizers import OuterAdam, OuterLamb, OuterOptimizer, OuterSgd
    from fl.strategies.outer_rule import OuterGradients, OuterRule
    from fl.strategies.overlap_local_sgd import OverlapLocalSGD
    from fl.strategies.pfedme import PFedMe
    from fl.strategies.pipeline_rule import PipelineTraining, StageRecovery, StageState
    from fl.strategies.plexus import Plexus
    from fl.strategies.proxskip import ProxSkip
    from fl.strategies.prunefl import PruneFL
    from fl.strategies.qfedavg import QFedAvg
    from fl.strategies.quafl import QuAFL
    from fl.strategies.rates import LinearScaling
    from fl.strategies.regional_rule import RegionalRule
    from fl.strategies.relaysgd import RelaySGD
    from fl.strategies.rennala import RennalaSGD
    from fl.strategies.ringmaster import RingmasterASGD
    from fl.strategies.round_rule import RoundRule, Updates
    from fl.strategies.sa_srrw import SASRRW
    from fl.strategies.sample_rule import SampleRule
    from fl.strategies.savic import SAVIC
    from fl.strategies.scaffold import SCAFFOLD
    from fl.strategies.sequential_gradient_coding import MSGC, SRSGC
    from fl.strategies.server_training import ServerTraining
    from fl.strategies.sgp import SGP
    from fl.strategies.simultaneous_rule import SimultaneousRule
    from fl.strategies.slowmo import SlowMo
    from fl.strategies.sparse import CosineSparseRule, SparseRule
    from fl.strategies.sparse_loco import SparseLoCo
    from fl.strategies.stage_recovery import CopiedStage, DrawnAnew, RedundantStages, RollBack
    from fl.strategies.streaming_diloco import StreamingDiLoCo
    from fl.strategies.sync_st import SyncST
    from fl.strategies.walk_rule import WalkRule

__getattr__ = lazily(
    __name__,
    {
        "ADPSGD": "fl.strategies.adpsgd",
        "BEER": "fl.strategies.beer",
        "CA2FL": "fl.strategies.ca2fl",
        "CheckFree": "fl.strategies.checkfree",
        "CheckFreePlus": "fl.strategies.checkfree",
        "CopiedStage": "fl.strategies.stage_recovery",
        "CosineSparseRule": "fl.strategies.sparse",
        "EXTRA": "fl.strategies.extra",
        "FADAS": "fl.strategies.fadas",
        "FedAMSGrad": "fl.strategies.fedamsgrad",
        "FlexLoRA": "fl.strategies.flexlora",
        "FedConv": "fl.strategies.fedconv",
        "Pipeline": "fl.strategies.drivers.stages.pipeline",
        "PipelineTraining": "fl.strategies.pipeline_rule",
        "DrawnAnew": "fl.strategies.stage_recovery",
        "RedundantStages": "fl.strategies.stage_recovery",
        "RollBack": "fl.strategies.stage_recovery",
        "ServerExamples": "fl.strategies.drivers.server_examples",
        "ServerTraining": "fl.strategies.server_training",
        "FedDST": "fl.strategies.feddst",
        "FedMef": "fl.strategies.fedmef",
        "FedTiny": "fl.strategies.fedtiny",
        "FedVARP": "fl.strategies.fedvarp",
        "MultiMomentum": "fl.strategies.multi_momentum",
        "OptEx": "fl.strategies.optex",
        "CDFL": "fl.strategies.cdfl",
        "ProxyLosses": "fl.strategies.drivers.proxy_losses",
        "HierFAVG": "fl.strategies.hierfavg",
        "IFCA": "fl.strategies.ifca",
        "ClusterModels": "fl.strategies.drivers.rounds.cluster_models",
        "Clusters": "fl.strategies.clusters",
        "CHOCO": "fl.strategies.choco",
        "DBW": "fl.strategies.dbw",
        "DPSGD": "fl.strategies.dpsgd",
        "FAVAS": "fl.strategies.favas",
        "MIFA": "fl.strategies.mifa",
        "NODE_METRICS": "fl.strategies.drivers.peers.node_models",
        "PruneFL": "fl.strategies.prunefl",
        "SASRRW": "fl.strategies.sa_srrw",
        "SAVIC": "fl.strategies.savic",
        "SCAFFOLD": "fl.strategies.scaffold",
        "SGP": "fl.strategies.sgp",
        "SlowMo": "fl.strategies.slowmo",
        "AsyncDiLoCo": "fl.strategies.async_diloco",
        "DelayedNesterov": "fl.strategies.async_diloco",
        "HALoS": "fl.strategies.halos",
        "RegionalRule": "fl.strategies.regional_rule",
        "Regions": "fl.strategies.drivers.events.regions",
        "SparseLoCo": "fl.strategies.sparse_loco",
        "CO2": "fl.strategies.co2",
        "Cephalo": "fl.strategies.cephalo",
        "OverlapLocalSGD": "fl.strategies.overlap_local_sgd",
        "CodedRounds": "fl.strategies.drivers.workers.coded",
        "CodedScheme": "fl.strategies.coded_scheme",
        "CodedTimes": "fl.strategies.coded_times",
        "CyclicCode": "fl.strategies.gradient_codes",
        "GradientCode": "fl.strategies.gradient_codes",
        "GradientCoding": "fl.strategies.gradient_coding",
        "MSGC": "fl.strategies.sequential_gradient_coding",
        "RepetitionCode": "fl.strategies.gradient_codes",
        "SRSGC": "fl.strategies.sequential_gradient_coding",
        "fastest": "fl.strategies.coded_times",
        "replayed": "fl.strategies.coded_times",
        "Answers": "fl.strategies.event_rule",
        "Arrivals": "fl.strategies.event_rule",
        "AsyncFedAvg": "fl.strategies.async_fedavg",
        "AsyncSGD": "fl.strategies.async_sgd",
        "BackupWorkers": "fl.strategies.backup_workers",
        "BatchTest": "fl.strategies.adaptive_batch",
        "DFedAvg": "fl.strategies.dfedavg",
        "DIMAT": "fl.strategies.dimat",
        "D2": "fl.strategies.d2",
        "DataParallel": "fl.strategies.data_parallel",
        "Collaboration": "fl.strategies.drivers.outer.collaboration",
        "DeDLOC": "fl.strategies.dedloc",
        "Decentralized": "fl.strategies.drivers.peers.decentralized",
        "Decision": "fl.strategies.event_rule",
        "DelayedUpdates": "fl.strategies.eager_updates",
        "DiLoCo": "fl.strategies.diloco",
        "Driver": "fl.strategies.drivers.driver",
        "EagerUpdates": "fl.strategies.eager_updates",
        "EventRule": "fl.strategies.event_rule",
        "Events": "fl.strategies.drivers.events.asynchronous",
        "Exchange": "fl.strategies.drivers.exchange",
        "FedAMD": "fl.strategies.fedamd",
        "FedAST": "fl.strategies.fedast",
        "FedAU": "fl.strategies.fedau",
        "FedAdagrad": "fl.strategies.fedopt",
        "FedAdam": "fl.strategies.fedopt",
        "FedAsync": "fl.strategies.fedasync",
        "FedAvg": "fl.strategies.fedavg",
        "FedAvgM": "fl.strategies.fedavgm",
        "FedAvgMomentum": "fl.strategies.global_momentum",
        "FedBuff": "fl.strategies.fedbuff",
        "FedCompass": "fl.strategies.fedcompass",
        "FedDyn": "fl.strategies.feddyn",
        "FedFix": "fl.strategies.fedfix",
        "FedHyperCL": "fl.strategies.fedhyper",
        "FedHyperG": "fl.strategies.fedhyper",
        "FedHyperSL": "fl.strategies.fedhyper",
        "FedNova": "fl.strategies.fednova",
        "FedProx": "fl.strategies.fedprox",
        "FedSoft": "fl.strategies.fedsoft",
        "FedSpeed": "fl.strategies.fedspeed",
        "FedYogi": "fl.strategies.fedopt",
        "Foreign": "fl.strategies.drivers.foreign",
        "Gossip": "fl.strategies.drivers.peers.gossip",
        "GossipRule": "fl.strategies.gossip_rule",
        "GradientRule": "fl.strategies.gradient_rule",
        "GradientTracking": "fl.strategies.gradient_tracking",
        "InnerProductTest": "fl.strategies.adaptive_batch",
        "LinearScaling": "fl.strategies.rates",
        "LocalSGD": "fl.strategies.local_sgd",
        "MoNNA": "fl.strategies.monna",
        "NodeModels": "fl.strategies.drivers.peers.node_models",
        "NoiseScale": "fl.strategies.noise_scale",
        "NormTest": "fl.strategies.adaptive_batch",
        "OuterAdam": "fl.strategies.outer_optimizers",
        "OuterLamb": "fl.strategies.outer_optimizers",
        "OuterGradients": "fl.strategies.outer_rule",
        "OuterOptimizer": "fl.strategies.outer_optimizers",
        "OuterRule": "fl.strategies.outer_rule",
        "OuterSgd": "fl.strategies.outer_optimizers",
        "OuterSteps": "fl.strategies.drivers.outer.outer",
        "PFedMe": "fl.strategies.pfedme",
        "PairRule": "fl.strategies.gossip_rule",
        "Pairs": "fl.strategies.drivers.peers.pairs",
        "ParameterServer": "fl.strategies.drivers.workers.parameter_server",
        "Polling": "fl.strategies.drivers.events.polling",
        "PollingRule": "fl.strategies.event_rule",
        "MergingRule": "fl.strategies.gossip_rule",
        "LocalTraining": "fl.strategies.gossip_rule",
        "QFedAvg": "fl.strategies.qfedavg",
        "ProxSkip": "fl.strategies.proxskip",
        "QuAFL": "fl.strategies.quafl",
        "RelaySGD": "fl.strategies.relaysgd",
        "RennalaSGD": "fl.strategies.rennala",
        "Replicas": "fl.strategies.drivers.workers.replicas",
        "RingmasterASGD": "fl.strategies.ringmaster",
        "RoundRule": "fl.strategies.round_rule",
        "Rounds": "fl.strategies.drivers.rounds.rounds",
        "SCAFFOLDMomentum": "fl.strategies.global_momentum",
        "SWARM": "fl.strategies.drivers.stages.swarm_pipelines",
        "Petals": "fl.strategies.drivers.stages.petals",
        "SimultaneousEvents": "fl.strategies.drivers.events.simultaneous",
        "SimultaneousRounds": "fl.strategies.drivers.events.simultaneous",
        "SimultaneousRule": "fl.strategies.simultaneous_rule",
        "SparseRule": "fl.strategies.sparse",
        "StageRecovery": "fl.strategies.pipeline_rule",
        "StageState": "fl.strategies.pipeline_rule",
        "StreamingDiLoCo": "fl.strategies.streaming_diloco",
        "SyncST": "fl.strategies.sync_st",
        "Traits": "fl.strategies.drivers.driver",
        "Plexus": "fl.strategies.plexus",
        "SampleRule": "fl.strategies.sample_rule",
        "Sampled": "fl.strategies.drivers.peers.sampled",
        "TreeRule": "fl.strategies.gossip_rule",
        "TrustedUpdate": "fl.strategies.drivers.trusted_update",
        "WalkRule": "fl.strategies.walk_rule",
        "Walks": "fl.strategies.drivers.peers.walks",
        "Updates": "fl.strategies.round_rule",
        "driver_of": "fl.strategies.drivers.foreign",
    },
)

__all__ = [
    "ADPSGD",
    "BEER",
    "CA2FL",
    "CDFL",
    "CHOCO",
    "CO2",
    "D2",
    "DBW",
    "DIMAT",
    "DPSGD",
    "EXTRA",
    "FADAS",
    "FAVAS",
    "IFCA",
    "MIFA",
    "MSGC",
    "NODE_METRICS",
    "SASRRW",
    "SAVIC",
    "SCAFFOLD",
    "SGP",
    "SRSGC",
    "SWARM",
    "Answers",
    "Arrivals",
    "AsyncDiLoCo",
    "AsyncFedAvg",
    "AsyncSGD",
    "BackupWorkers",
    "BatchTest",
    "Cephalo",
    "CheckFree",
    "CheckFreePlus",
    "ClusterModels",
    "Clusters",
    "CodedRounds",
    "CodedScheme",
    "CodedTimes",
    "Collaboration",
    "CopiedStage",
    "CosineSparseRule",
    "CyclicCode",
    "DFedAvg",
    "DataParallel",
    "DeDLOC",
    "Decentralized",
    "Decision",
    "DelayedNesterov",
    "DelayedUpdates",
    "DiLoCo",
    "DrawnAnew",
    "Driver",
    "EagerUpdates",
    "EventRule",
    "Events",
    "Exchange",
    "FedAMD",
    "FedAMSGrad",
    "FedAST",
    "FedAU",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedAvgMomentum",
    "FedBuff",
    "FedCompass",
    "FedConv",
    "FedDST",
    "FedDyn",
    "FedFix",
    "FedHyperCL",
    "FedHyperG",
    "FedHyperSL",
    "FedMef",
    "FedNova",
    "FedProx",
    "FedSoft",
    "FedSpeed",
    "FedTiny",
    "FedVARP",
    "FedYogi",
    "FlexLoRA",
    "Foreign",
    "Gossip",
    "GossipRule",
    "GradientCode",
    "GradientCoding",
    "GradientRule",
    "GradientTracking",
    "HALoS",
    "HierFAVG",
    "InnerProductTest",
    "LinearScaling",
    "LocalSGD",
    "LocalTraining",
    "MergingRule",
    "MoNNA",
    "MultiMomentum",
    "NodeModels",
    "NoiseScale",
    "NormTest",
    "OptEx",
    "OuterAdam",
    "OuterGradients",
    "OuterLamb",
    "OuterOptimizer",
    "OuterRule",
    "OuterSgd",
    "OuterSteps",
    "OverlapLocalSGD",
    "PFedMe",
    "PairRule",
    "Pairs",
    "ParameterServer",
    "Petals",
    "Pipeline",
    "PipelineTraining",
    "Plexus",
    "Polling",
    "PollingRule",
    "ProxSkip",
    "ProxyLosses",
    "PruneFL",
    "QFedAvg",
    "QuAFL",
    "RedundantStages",
    "RegionalRule",
    "Regions",
    "RelaySGD",
    "RennalaSGD",
    "RepetitionCode",
    "Replicas",
    "RingmasterASGD",
    "RollBack",
    "RoundRule",
    "Rounds",
    "SCAFFOLDMomentum",
    "SampleRule",
    "Sampled",
    "ServerExamples",
    "ServerTraining",
    "SimultaneousEvents",
    "SimultaneousRounds",
    "SimultaneousRule",
    "SlowMo",
    "SparseLoCo",
    "SparseRule",
    "StageRecovery",
    "StageState",
    "StreamingDiLoCo",
    "SyncST",
    "Traits",
    "TreeRule",
    "TrustedUpdate",
    "Updates",
    "WalkRule",
    "Walks",
    "driver_of",
    "fastest",
    "replayed",
]
