"""The experiments that `fl` simulates, on a Flower deployment: SuperLink and SuperNodes.

`server.app` and `client.app` are the components of the Flower app that a checkout is. Both compose
the same Hydra configuration, from the overrides in the run's configuration. An app with parts of
its own, such as `fl init` makes, has `server_app` and `client_app` of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl.deployment.grid import DeployedGrid
from fl.deployment.local import LocalDeployment


def server_app(config_dir: Path | str, modules: Sequence[str]) -> ServerApp:
    """Returns a ServerApp that runs an experiment of an app's own parts.

    Args:
        config_dir: the app's folder of configuration, as `fl -cd` has it.
        modules: the app's own, whose functions and classes a `_target_` may name.
    """
    from fl.deployment.server import deployed
    from fl.deployment.settings import Own

    return deployed(Own(Path(config_dir), tuple(modules)))


def client_app(config_dir: Path | str, modules: Sequence[str]) -> ClientApp:
    """Returns the ClientApp of such an experiment; arguments as of `server_app`."""
    from fl.deployment.client import DeployedApp
    from fl.deployment.settings import Own

    return DeployedApp(Own(Path(config_dir), tuple(modules)))


__all__ = ["DeployedGrid", "LocalDeployment", "client_app", "server_app"]
