"""The Ray that runs use: joined at an address, started for one run, or shared by many.

Nothing heavy is imported here, because Ray is started before anything else is.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Thread

from fl.errors import ConfigError
from fl.execution.threads import cores

_PATIENCE_S = 10.0  # host seconds for a cluster to answer

_NO_CLUSTER = (
    "no Ray cluster answers at executor.address={}: start one with `ray start --head`, correct the "
    "address, or set it to null to start Ray here"
)


def connect(address: str | None, num_actors: int | None, cpus_per_actor: float) -> bool:
    """Connects this process to Ray, unless it is.

    Args:
        address: of a cluster; None joins the environment's RAY_ADDRESS if there is one, and starts
            Ray here otherwise.
        num_actors: how many a Ray that is started has CPUs for; None is what the machine has.
        cpus_per_actor: how many each takes.

    Returns:
        Whether it was not connected before.

    Raises:
        ConfigError: there is no cluster at the address, or another one is connected.
    """
    import ray

    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise ConfigError(
                f"executor.address is {address}, but this process is connected to Ray at {here}: "
                "leave the address out, or call ray.shutdown() first"
            )
        return False
    chosen = address or os.environ.get("RAY_ADDRESS") or "local"
    if chosen not in ("local", "auto"):
        _check_reachable(chosen)
    cpus = None
    if chosen == "local" and num_actors is not None:
        # Actors are processes: more of them than CPUs are slower, but right.
        cpus = max(math.ceil(num_actors * cpus_per_actor), os.cpu_count() or 1)
    _init(chosen, cpus)
    return True


@contextmanager
def started(
    num_actors: int | None, cpus_per_actor: float, meanwhile: Sequence[str]
) -> Iterator[None]:
    """Starts Ray for the block, unless it runs, and stops it; who connects in the block finds it.

    Ray takes seconds to start, of which this process spends most waiting: a second thread imports
    the modules `meanwhile`. Not the other way round: the processes that Ray starts end with the
    thread that has started them.
    """
    import ray

    def work() -> None:
        with suppress(Exception):  # raised again by whoever imports it next
            for module in meanwhile:
                import_module(module)

    others = Thread(target=work, daemon=True)
    others.start()
    owns = not ray.is_initialized()
    try:
        connect(None, num_actors, cpus_per_actor)
        others.join()
        yield
    finally:
        if owns:
            ray.shutdown()


def start_shared(actors: int = 0) -> bool:
    """Starts Ray for executors in this process and in those it starts: they find RAY_ADDRESS.

    Args:
        actors: the most that a run is known to ask for; Ray has at least as many CPUs, and those
            that this process may use.

    Returns:
        False if this process is connected to Ray already, and nothing was started.
    """
    import ray

    if ray.is_initialized():
        return False
    _init("local", max(cores(), actors))
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    return True


def stop_shared() -> None:
    """Stops what `start_shared` started."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.shutdown()


def _init(address: str, cpus: int | None) -> None:
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            address=address,
            num_cpus=cpus,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
        )
    except ConnectionError as error:
        raise ConfigError(_NO_CLUSTER.format(address)) from error


def _check_reachable(address: str) -> None:
    """Checks that something listens at host:port; Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(_NO_CLUSTER.format(address)) from error
