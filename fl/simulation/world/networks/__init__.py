"""Networks: links that clients share on the way to the server, one kind per module.

| module | network |
|---|---|
| `areas` | homes, cells, sites and regions; or nothing, for TCP alone |
| `file` | what a YAML file states |
| `simgrid` | what a SimGrid platform file states |
"""

from fl.simulation.kernel.routes import Cable, Routes
from fl.simulation.world.networks.areas import Cells, Direct, Households, Sites
from fl.simulation.world.networks.background import Background
from fl.simulation.world.networks.file import NetworkFile
from fl.simulation.world.networks.network import NetworkModel
from fl.simulation.world.networks.simgrid import SimGridPlatform
from fl.simulation.world.networks.tcp import Tcp

__all__ = [
    "Background",
    "Cable",
    "Cells",
    "Direct",
    "Households",
    "NetworkFile",
    "NetworkModel",
    "Routes",
    "SimGridPlatform",
    "Sites",
    "Tcp",
]
