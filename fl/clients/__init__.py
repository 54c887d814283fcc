"""Client rules, and the ClientApp that runs any of them.

A rule is `init`, `step` and `finish` on flat vectors (`fl.clients.rule`). `TrainingApp` runs it for
one client at a time, on the simulator as on a real SuperNode, or for many at once.
"""

from fl.clients.adamw import AdamW
from fl.clients.app.batched import gains_from_batching
from fl.clients.app.downlink import Downlink
from fl.clients.app.task_app import TaskApp
from fl.clients.app.training_app import TrainingApp
from fl.clients.app.uplink import Uplink
from fl.clients.gradient import Gradient
from fl.clients.island import Fragments, Island
from fl.clients.microadam import MicroAdam
from fl.clients.momentum import Momentum
from fl.clients.proximal import Proximal
from fl.clients.replica import Replica
from fl.clients.rule import Batch, Finished, Received, Rule
from fl.clients.sam import Sam
from fl.clients.scaffold import ControlVariates
from fl.clients.schedule import CosineDecay, ExponentialDecay, Schedule, StepDecay, Warmup
from fl.clients.sgd import Sgd

__all__ = [
    "AdamW",
    "Batch",
    "ControlVariates",
    "CosineDecay",
    "Downlink",
    "ExponentialDecay",
    "Finished",
    "Fragments",
    "Gradient",
    "Island",
    "MicroAdam",
    "Momentum",
    "Proximal",
    "Received",
    "Replica",
    "Rule",
    "Sam",
    "Schedule",
    "Sgd",
    "StepDecay",
    "TaskApp",
    "TrainingApp",
    "Uplink",
    "Warmup",
    "gains_from_batching",
]
