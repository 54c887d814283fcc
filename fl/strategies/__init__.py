"""Server algorithms, one paper per file; Flower's own are used through `fl/conf/strategy`."""

from fl.strategies.aggregate import Aggregate
from fl.strategies.async_fedavg import AsyncFedAvg
from fl.strategies.async_sgd import AsyncSgd
from fl.strategies.attacked import Attacked
from fl.strategies.backup_workers import BackupWorkers
from fl.strategies.compressed import Compressed, CompressedGrid
from fl.strategies.data_parallel import DataParallel
from fl.strategies.dbw import DBW
from fl.strategies.diloco import DiLoCo
from fl.strategies.eager_updates import DelayedUpdates, EagerUpdates
from fl.strategies.favas import Favas
from fl.strategies.fedast import FedAST
from fl.strategies.fedasync import FedAsync
from fl.strategies.fedbuff import FedBuff
from fl.strategies.fedcompass import FedCompass
from fl.strategies.fedfix import FedFix
from fl.strategies.fedprox import FedProx
from fl.strategies.local_sgd import LocalSGD
from fl.strategies.oort import Oort
from fl.strategies.outer import OuterSteps
from fl.strategies.outer_optimizers import OuterAdam, OuterOptimizer, OuterSgd
from fl.strategies.over_selection import OverSelection
from fl.strategies.quafl import QuAFL
from fl.strategies.replicas import Replicas
from fl.strategies.streaming_diloco import StreamingDiLoCo
from fl.strategies.sync_st import SyncST
from fl.strategies.tifl import TiFL
from fl.strategies.trusted_update import TrustedUpdate

__all__ = [
    "DBW",
    "Aggregate",
    "AsyncFedAvg",
    "AsyncSgd",
    "Attacked",
    "BackupWorkers",
    "Compressed",
    "CompressedGrid",
    "DataParallel",
    "DelayedUpdates",
    "DiLoCo",
    "EagerUpdates",
    "Favas",
    "FedAST",
    "FedAsync",
    "FedBuff",
    "FedCompass",
    "FedFix",
    "FedProx",
    "LocalSGD",
    "Oort",
    "OuterAdam",
    "OuterOptimizer",
    "OuterSgd",
    "OuterSteps",
    "OverSelection",
    "QuAFL",
    "Replicas",
    "StreamingDiLoCo",
    "SyncST",
    "TiFL",
    "TrustedUpdate",
]
