"""A deployment on this machine alone: a SuperLink and SuperNodes on loopback."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from fl.deployment.shaped_link import Shape, ShapedLink
from fl.errors import ConfigError, DeploymentError
from fl.execution.processes import end, marked, new_mark

_START_S = 600.0  # most s until the SuperLink listens, on a machine that is busy with others
_STOP_S = 20.0  # s to end by themselves, before they are killed
_LOG_LINES = 40  # of each log, in the message of a failure
_MARK = "FL_LOCAL_DEPLOYMENT"  # environment variable by which processes are known
_PR_SET_PDEATHSIG = 1
_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class LocalDeployment:
    """A SuperLink and SuperNodes on loopback, from entering the block to leaving it.

    What Flower writes (its `FLWR_HOME`), and the logs, are in a folder of its own. The processes
    started, and theirs, are known by a mark in their environment: all of them end with the block,
    however it ends, and no other process does. They end as well if this process is killed.

    >>> nodes = [{"partition-id": i, "num-partitions": 2} for i in range(2)]
    >>> with LocalDeployment(nodes) as local:  # doctest: +SKIP
    ...     print(local.run(app, {"overrides": "strategy=fedbuff num_clients=2"}))

    Args:
        nodes: what `--node-config` says to each SuperNode.
        folder: where Flower's files and the logs go; None makes a temporary one, which is removed.
        path: folders with modules for the apps, put before those that Python knows.
        environment: more variables for all processes.
        shape: of a link between each SuperNode and the SuperLink; None: loopback itself.

    Attributes:
        folder: where Flower's files and the logs are.
        address: of the SuperLink.
    """

    def __init__(
        self,
        nodes: Sequence[Mapping[str, int | float | str | bool]],
        *,
        folder: Path | None = None,
        path: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.nodes = [dict(node) for node in nodes]
        self._given = folder
        self._path = [str(each) for each in path]
        self._more = dict(environment or {})
        self._shape = shape
        self._stack = ExitStack()
        self._mark = new_mark()
        self._children: list[subprocess.Popen[bytes]] = []
        self.folder = Path()
        self.address = ""

    # ---- from beginning to end -----------------------------------------------------------------

    def __enter__(self) -> LocalDeployment:
        """Starts all processes; returns when the SuperLink listens.

        Raises:
            ConfigError: this is no Linux, or Flower's programs are not beside this Python.
            DeploymentError: the SuperLink does not start.
        """
        if sys.platform != "linux":
            raise ConfigError(
                f"this is {sys.platform}, and local deployments find their processes in Linux's "
                "/proc: start SuperLink and SuperNodes by hand, as docs/deployment.md tells"
            )
        with ExitStack() as stack:
            if self._given is None:
                self.folder = Path(tempfile.mkdtemp(prefix="fl-deployment-"))
                stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            else:
                self.folder = self._given.absolute()
                self.folder.mkdir(parents=True, exist_ok=True)
            stack.callback(self._stop_all)
            link, *ports = _free_ports(1 + len(self.nodes))
            self.address = f"127.0.0.1:{link}"
            self._write_config()
            superlink = self._start(
                "superlink",
                "flower-superlink",
                "--insecure",
                "--disable-runtime-dependency-installation",
                "--port",
                str(link),
            )
            self._await(superlink, link)
            for i, (node, port) in enumerate(zip(self.nodes, ports, strict=True)):
                address = self.address
                if self._shape is not None:
                    address = (
                        f"127.0.0.1:{stack.enter_context(ShapedLink(link, self._shape, i)).port}"
                    )
                self._start(
                    f"supernode-{i}",
                    "flower-supernode",
                    "--insecure",
                    "--superlink",
                    address,
                    "--port",
                    str(port),
                    "--node-config",
                    " ".join(f"{key}={json.dumps(value)}" for key, value in node.items()),
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops everything that was started here."""
        self._stack.close()

    def run(
        self,
        app: Path,
        run_config: Mapping[str, int | float | str | bool],
        *,
        timeout_s: float = 1800.0,
        tell: Callable[[str], None] | None = None,
    ) -> str:
        """Runs a Flower app, as `flwr run` does, until its ServerApp has ended.

        Args:
            app: folder of the app.
            run_config: what to change in its configuration.
            timeout_s: most s that it may take.
            tell: called with every line of its log.

        Raises:
            DeploymentError: the app fails, or takes too long; the message ends with the logs.

        Returns:
            The run's log.
        """
        config = self.folder / "run.toml"
        config.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in run_config.items()))
        process = self._popen(
            ["flwr", "run", str(app), "--stream", "--run-config", str(config)],
            stdout=subprocess.PIPE,
        )
        lines: list[str] = []
        late = threading.Timer(timeout_s, process.kill)
        late.start()
        try:
            for line in process.stdout or ():
                lines.append(_plain(line.decode(errors="replace")).rstrip())
                if tell is not None:
                    tell(lines[-1])
            process.wait()
        finally:
            late.cancel()
        log = "\n".join(lines)
        if process.returncode == -signal.SIGKILL:
            raise DeploymentError(f"the run took longer than {timeout_s:g} s\n{self._logs(log)}")
        status = self._status()
        if process.returncode or status != "finished:completed":
            raise DeploymentError(f"the run ended as {status}\n{self._logs(log)}")
        return log

    @property
    def superlink(self) -> int:
        """The id of the SuperLink's process; in the block."""
        return self._children[0].pid

    def processes(self) -> list[int]:
        """Returns the ids of the processes that were started here, and theirs, that still run."""
        for child in self._children:
            child.poll()  # a process that has ended is there until its parent has asked
        return marked(_MARK, self._mark)

    # ---- inside --------------------------------------------------------------------------------

    @property
    def _environment(self) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        known = [each for each in (os.environ.get("PYTHONPATH"),) if each]
        return {
            **os.environ,
            _MARK: self._mark,
            "FLWR_HOME": str(self.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([*self._path, *known]),
            **self._more,
        }

    def _write_config(self) -> None:
        (self.folder / "config.toml").write_text(
            '[superlink]\ndefault = "local"\n'
            f'[superlink.local]\naddress = "{self.address}"\ninsecure = true\n'
        )

    def _popen(self, command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).parent / command[0]
        if not program.exists():
            raise ConfigError(
                f"{program} does not exist: install flwr into the environment of {sys.executable}"
            )
        child = subprocess.Popen(
            [str(program), *command[1:]],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt at the keyboard is for us, who stop the others
            preexec_fn=_end_with_parent,
            **streams,
        )
        self._children.append(child)
        return child

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "wb") as log:
            return self._popen(list(command), stdout=log)

    def _await(self, superlink: subprocess.Popen[bytes], port: int) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until and superlink.poll() is None:
            with socket.socket() as each:
                if each.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise DeploymentError(f"the SuperLink does not listen at {self.address}\n{self._logs('')}")

    def _status(self) -> str:
        """Returns what the SuperLink says of the latest run."""
        process = self._popen(["flwr", "ls", "--format", "json"], stdout=subprocess.PIPE)
        told, _ = process.communicate(timeout=120)
        try:
            runs = json.loads(told[told.index(b"{") :])["runs"]
            return str(runs[0]["status"])
        except (ValueError, KeyError, IndexError) as error:
            raise DeploymentError(f"flwr ls says {told!r}") from error

    def _logs(self, log: str) -> str:
        parts = {"flwr run": log}
        for path in sorted(self.folder.glob("*.log")):
            parts[path.stem] = _plain(path.read_text(errors="replace"))
        return "\n".join(
            f"---- {name}\n" + "\n".join(text.splitlines()[-_LOG_LINES:])
            for name, text in parts.items()
        )

    def _stop_all(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if end(self.processes, sign, _STOP_S):
                return
        raise DeploymentError(f"the processes {self.processes()} do not end")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _end_with_parent() -> None:
    """Has the kernel end this process when its parent's thread ends; runs after fork."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _plain(text: str) -> str:
    return _COLOUR.sub("", text)
