"""Federated and decentralized learning, simulated: training is real, time is virtual.

The names below are loaded when first used, so that `import fl` and `fl --help` stay quick.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fl.lazy import defer, lazily

if TYPE_CHECKING:
    from fl.errors import ConfigError, SimulationError
    from fl.reports import Target
    from fl.runs.python import run
    from fl.runs.simulator import SimulatedRun, simulate, simulate_app
    from fl.simulation.cost import CostModel

# PyTorch reads this when it first allocates: large pages for tensors of megabytes. A client's
# training makes some at every step; with pages of 4 kB, models of 100 million parameters spend most
# of their time on making those.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# SciPy asks for every name of NumPy. This one takes longer to import than the others together.
defer("numpy.f2py")

__getattr__ = lazily(
    __name__,
    {
        "CostModel": "fl.simulation.cost",
        "ConfigError": "fl.errors",
        "SimulatedRun": "fl.runs.simulator",
        "SimulationError": "fl.errors",
        "Target": "fl.reports",
        "run": "fl.runs.python",
        "simulate": "fl.runs.simulator",
        "simulate_app": "fl.runs.simulator",
    },
)

__all__ = [
    "ConfigError",
    "CostModel",
    "SimulatedRun",
    "SimulationError",
    "Target",
    "run",
    "simulate",
    "simulate_app",
]
