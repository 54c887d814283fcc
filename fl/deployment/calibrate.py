"""`fl calibrate`: the constants of this host, or of a deployment, and how well they predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl.errors import ConfigError
from fl.runs.command_parser import CommandParser


def main(words: Sequence[str]) -> None:
    """Measures, fits or checks.

    Raises:
        ConfigError: the arguments are wrong.
        DeploymentError: SuperNodes do not answer.
    """
    parser = CommandParser(
        prog="fl calibrate",
        description="Measures what software and processor take, and writes it as a runtime and a "
        "fleet, with 95 % intervals. On another deployment: flwr run . field --run-config "
        '\'calibrate="NAME" nodes=N directory="DIR"\'.',
    )
    parser.add_argument("name", metavar="NAME", help="of the members runtime=NAME and fleet=NAME")
    parser.add_argument(
        "--config-dir", "-cd", metavar="DIR", type=Path, default=Path("conf"), help="of both"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--nodes", type=int, metavar="N", help="SuperNodes to start here, and ask")
    what.add_argument(
        "--runs", type=Path, nargs="+", metavar="RUN", help="fit start_s to runs of a deployment"
    )
    what.add_argument("--check", type=Path, metavar="RUN", help="predict such a run, and compare")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without one argparse asks for it
        metavar="KEY=VALUE",
        help="with --check, --runs: links, as fleet.up_bps=1e7",
    )
    given = parser.parse_intermixed_args(words)
    if not given.name.isidentifier():
        raise ConfigError(f"NAME is {given.name!r}; it must be a name, as my_host")
    if given.overrides and given.check is None and given.runs is None:
        raise ConfigError(f"{given.overrides[0]} has no effect without --check RUN or --runs RUN")
    folder: Path = given.config_dir
    if given.check is not None:
        from fl.deployment.checking import check  # heavy, and so are those below

        check(given.check, given.name, folder, given.overrides)
    elif given.runs is not None:
        from fl.deployment.checking import fit_start

        fit_start(given.runs, given.name, folder, given.overrides)
    elif given.nodes is not None:
        if given.nodes < 1:
            raise ConfigError(f"--nodes is {given.nodes}; it must be at least 1")
        _on_supernodes(given.name, folder, given.nodes)
    else:
        from fl.deployment.calibrating import conclude
        from fl.deployment.local import LocalDeployment
        from fl.deployment.measuring import measure, measure_calls

        print("measuring this host, which takes about a minute", flush=True)
        measured = measure()
        with LocalDeployment([]) as local:
            measure_calls(measured, local.address, local.superlink)
        conclude(measured, given.name, folder, "On this host")


def _on_supernodes(name: str, folder: Path, count: int) -> None:
    import fl
    from fl.deployment.fitting import calls_of, set_key
    from fl.deployment.local import LocalDeployment
    from fl.deployment.measuring import Measured, measure_calls

    app = Path(fl.__file__).parents[1]
    nodes = [{"partition-id": i, "num-partitions": count, "threads": 1} for i in range(count)]
    print(f"starting a SuperLink and {count} SuperNodes", flush=True)
    with LocalDeployment(nodes, path=[app]) as local:
        asked = {"overrides": f"num_clients={count}", "calibrate": name}
        local.run(app, {**asked, "directory": str(folder.absolute())}, timeout_s=3600.0, tell=_tell)
        calls = Measured()
        measure_calls(calls, local.address, local.superlink)
    set_key(folder / "runtime" / f"{name}.yaml", "call_s", calls_of(calls), "on loopback")


def _tell(line: str) -> None:
    if line.strip() and not line.startswith(("INFO", "Using SuperLink", "Successfully")):
        print(line, flush=True)
