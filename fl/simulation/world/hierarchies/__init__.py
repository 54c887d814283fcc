"""Hierarchies: machines between clients and the server that add updates up, one kind per module.

| module | hierarchy |
|---|---|
| `edge` | edge servers, each with clients of its own, and the cloud above them |
| `lifl` | nodes of a cluster on which aggregators are started as they are needed |
"""

from fl.simulation.world.hierarchies.edge import Edge
from fl.simulation.world.hierarchies.hierarchy import Hierarchy
from fl.simulation.world.hierarchies.lifl import Lifl
from fl.simulation.world.hierarchies.machine import AggregatorMachine

__all__ = ["AggregatorMachine", "Edge", "Hierarchy", "Lifl"]
