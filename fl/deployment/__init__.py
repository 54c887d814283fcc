"""The experiments that `fl` simulates, on a Flower deployment: SuperLink and SuperNodes.

`server.app` and `client.app` are the components of the Flower app that a checkout is. Both compose
the same Hydra configuration, from the overrides in the run's configuration.
"""

from fl.deployment.grid import DeployedGrid
from fl.deployment.local import LocalDeployment

__all__ = ["DeployedGrid", "LocalDeployment"]
