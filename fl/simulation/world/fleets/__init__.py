"""Presets: functions that build a fleet, one per module, named by `_target_` in `conf/fleet/`.

| module | fleet |
|---|---|
| `uniform` | equal clients (or a chosen spread of speeds): for checks by hand and for sweeps |
| `mobile` | phones of three classes on Wi-Fi, 4G and 5G |
| `cross_silo` | servers and workstations of institutions |
| `datacenters` | islands of GPUs joined by a wide-area network |
| `volunteers` | private and free GPUs behind unequal links, that come and go |
| `serverless` | cloud functions with measured times |
| `durations` | task times drawn from a distribution |
| `trace` | devices, links and behaviour from published files |
"""

from fl.simulation.world.fleets.cross_silo import cross_silo
from fl.simulation.world.fleets.datacenters import datacenters
from fl.simulation.world.fleets.durations import durations
from fl.simulation.world.fleets.mobile import NetworkClass, PhoneClass, mobile
from fl.simulation.world.fleets.serverless import serverless
from fl.simulation.world.fleets.trace import trace
from fl.simulation.world.fleets.uniform import uniform
from fl.simulation.world.fleets.volunteers import MachineClass, volunteers

# Each function hides the module of the same name, so that `fleets.mobile` is the preset;
# `from fl.simulation.world.fleets.mobile import ...` still finds the module.
__all__ = [
    "MachineClass",
    "NetworkClass",
    "PhoneClass",
    "cross_silo",
    "datacenters",
    "durations",
    "mobile",
    "serverless",
    "trace",
    "uniform",
    "volunteers",
]
