"""The Ray that runs use: joined at an address, started for one run, or shared by many.

What is started here is ended here, with every process that it has started: some of Ray's outlive
those that they belong to, for long on a busy machine, or for good if Ray fails while it starts.

Nothing heavy is imported here, because Ray is started before anything else is.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl.errors import ConfigError
from fl.execution.processes import end, marked, new_mark
from fl.extras import check_importable
from fl.vectors.threads import cores

log = logging.getLogger("fl")

_PATIENCE_S = 10.0  # host seconds for a cluster to answer
_START_S = 300.0  # and for one to start here: on a busy machine Ray's own 30 are too few
_ATTEMPTS = 2  # to start it
_END_S = 60.0  # for its processes to end, once they are killed
_MARK = "FL_RAY"  # environment variable by which they are known

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
        ConfigError: there is no cluster at the address, another one is connected, or none starts;
            or Ray is missing or broken.
    """
    check_importable("executor=ray", "ray")
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
    if chosen != "local":
        _init(chosen, None)
        return True
    cpus = None
    if num_actors is not None:
        # Actors are processes: more of them than CPUs are slower, but right.
        cpus = max(math.ceil(num_actors * cpus_per_actor), os.cpu_count() or 1)
    _start(cpus)
    return True


def disconnect() -> None:
    """Leaves the Ray that `connect` found; one that was started here ends, with all its processes.

    Returns when none of them is left.
    """
    import ray

    ray.shutdown()
    _end_processes()


@contextmanager
def started(num_actors: int | None, cpus_per_actor: float) -> Iterator[None]:
    """Starts Ray for the block, unless it runs, and stops it; who connects in the block finds it.

    In this thread: the processes that Ray starts end with the thread that has started them.

    Raises:
        ConfigError: as `connect`.
    """
    check_importable("executor=ray", "ray")
    import ray

    owns = not ray.is_initialized()
    try:
        connect(None, num_actors, cpus_per_actor)
        yield
    finally:
        if owns:
            disconnect()


def start_shared(actors: int = 0) -> bool:
    """Starts Ray for executors in this process and in those it starts: they find RAY_ADDRESS.

    Args:
        actors: the most that a run is known to ask for; Ray has at least as many CPUs, and those
            that this process may use.

    Returns:
        False if this process is connected to Ray already, and nothing was started.

    Raises:
        ConfigError: Ray is not installed, or does not start.
    """
    check_importable("executor=ray", "ray")
    import ray

    if ray.is_initialized():
        return False
    _start(max(cores(), actors))
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    return True


def stop_shared() -> None:
    """Stops what `start_shared` started."""
    os.environ.pop("RAY_ADDRESS", None)
    disconnect()


def _start(cpus: int | None) -> None:
    """Starts Ray here, and once more if it fails.

    Raises:
        ConfigError: it does not start.
    """
    global _mark
    for attempt in range(1, _ATTEMPTS + 1):
        _mark = os.environ[_MARK] = new_mark()
        try:
            with _patient():
                _init("local", cpus)
            return
        except BaseException as error:
            disconnect()
            if not isinstance(error, Exception):
                raise
            failure = error  # of any kind: Ray has none of its own for this
            log.warning("Ray did not start (attempt %d of %d): %s", attempt, _ATTEMPTS, error)
        finally:
            os.environ.pop(_MARK, None)
    raise ConfigError(
        f"Ray does not start on this machine, in {_ATTEMPTS} attempts: it is too busy, short of "
        "memory or of room on its disk. Try again later, or do without Ray, which gives the same "
        "results: executor=serial"
    ) from failure


_mark: str | None = None
"""Of the processes of the Ray that was started here, and has not ended."""


def _running() -> list[int]:
    return [] if _mark is None else marked(_MARK, _mark)


def _end_processes() -> None:
    """Ends what is left of the Ray that was started here, at once: nothing of it is needed."""
    global _mark
    if not end(_running, signal.SIGKILL, _END_S):
        log.warning("processes of Ray do not end: %s", _running())
    _mark = None


@contextmanager
def _patient() -> Iterator[None]:
    """Has Ray wait longer for the node that it starts; it has no setting for that.

    Its own loop asks this function, and gives up 30 s later.
    """
    from ray._private import services

    ask = services.get_node
    until = time.monotonic() + _START_S

    def get_node(*arguments: Any) -> Any:
        while True:
            try:
                return ask(*arguments)  # type: ignore[no-untyped-call]
            except RuntimeError:  # it is not there yet
                names = set(map(_name, _running()))
                if not names:
                    raise
                if "raylet" not in names or time.monotonic() > until:
                    raise ChildProcessError("its raylet has ended, or hangs") from None
            time.sleep(0.5)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = ask


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _init(address: str, cpus: int | None) -> None:
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(
                address=address,
                num_cpus=cpus,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
                configure_logging=False,
            )
        finally:
            # Ray takes the signal for itself, and would end a run before it has told its results.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)
    except ConnectionError as error:
        raise ConfigError(_NO_CLUSTER.format(address)) from error
    except SystemExit:  # what Ray makes of the signal while it starts
        if callable(on_term):
            on_term(signal.SIGTERM, None)
        raise


def _check_reachable(address: str) -> None:
    """Checks that something listens at host:port; Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(_NO_CLUSTER.format(address)) from error
