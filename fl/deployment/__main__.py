"""`python -m fl.deployment key=value ...`: one experiment on a deployment on this machine."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import fl
from fl.deployment.local import LocalDeployment
from fl.deployment.settings import check_deployable, compose_experiment
from fl.deployment.shaped_link import Shape
from fl.errors import ConfigError, DeploymentError
from fl.runs.build import build
from fl.runs.signals import Stopped, stoppable


def main() -> None:
    """Starts a SuperLink and a SuperNode per client, runs the experiment, and stops them."""
    parser = argparse.ArgumentParser(
        prog="python -m fl.deployment",
        description="Runs an experiment on a SuperLink and num_clients SuperNodes on this machine.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as after `fl`")
    parser.add_argument("--directory", default="outputs/deployment", help="of the run's files")
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="most s it takes"
    )
    link = parser.add_argument_group("the link of each SuperNode, loopback without --rate")
    link.add_argument("--rate", type=float, metavar="BPS", help="bit/s in each direction")
    link.add_argument("--delay", type=float, default=0.0, metavar="S", help="one-way, s")
    link.add_argument("--loss", type=float, default=0.0, metavar="P", help="of 16 KiB pieces")
    link.add_argument("--queue", type=int, default=2**18, metavar="BYTES", help="%(default)s")
    given = parser.parse_args()
    directory = Path(given.directory).absolute()
    try:
        shape = None
        if given.rate is not None:
            shape = Shape(given.rate, given.delay, given.loss, given.queue)
        with stoppable():
            _run(given.overrides, directory, given.timeout, shape)
    except (ConfigError, DeploymentError) as error:
        print(f"fl: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as error:
        print(f"fl: {error}; what was started is stopped", file=sys.stderr)
        sys.exit(error.status)


def _run(overrides: list[str], directory: Path, timeout_s: float, shape: Shape | None) -> None:
    app = Path(fl.__file__).parents[1]
    if not (app / "pyproject.toml").is_file():
        raise ConfigError(f"{app} is no checkout of fl, which is the Flower app that is run")
    config = compose_experiment(overrides)
    check_deployable(build(config))  # said here if it is wrong, before anything is started
    count: int = config.num_clients
    nodes = [{"partition-id": i, "num-partitions": count, "threads": 1} for i in range(count)]
    print(f"starting a SuperLink and {count} SuperNodes", flush=True)
    with LocalDeployment(nodes, path=[app], shape=shape) as local:
        local.run(
            app,
            {"overrides": shlex.join(overrides), "directory": str(directory)},
            timeout_s=timeout_s,
            tell=_tell,
        )
    print("SuperLink and SuperNodes are stopped")


def _tell(line: str) -> None:
    """Prints a line of the ServerApp's; Flower's own are left out."""
    if line.strip() and not line.startswith(("INFO", "Using SuperLink", "Successfully")):
        print(line, flush=True)


if __name__ == "__main__":
    main()
