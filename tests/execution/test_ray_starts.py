"""Ray that does not start, or is stopped, leaves an answer and no process behind."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl.errors import ConfigError
from fl.execution import cluster

MARK = "FL_TEST_RAY"


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Marks what is started here, by another name than the code under test does."""
    import ray

    assert not ray.is_initialized()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(MARK, str(tmp_path))
    yield str(tmp_path)
    cluster.disconnect()


def left(mark: str) -> list[str]:
    """The command lines of processes that were started in this test, and still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " ")[:200])
        except OSError:
            continue
    return found


def test_ray_that_starts_late_is_awaited_leaves_sigterm_alone_and_ends_with_all_its_processes(
    marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own patience is over when its clock says that 30 s have passed."""
    from ray._private import node, services

    ask, asked = services.get_node, []

    def slow(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) < 4:
            raise RuntimeError("not there yet")
        return ask(*arguments)

    class Clock:
        def monotonic(self) -> float:
            return 40.0 * len(asked)

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

    monkeypatch.setattr(cluster, "_ATTEMPTS", 1)
    monkeypatch.setattr(services, "get_node", slow)
    monkeypatch.setattr(node, "time", Clock())
    handler = signal.getsignal(signal.SIGTERM)
    assert cluster.connect(None, 1, 1.0)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert services.get_node is slow
    names = " ".join(left(marked))
    assert all(name in names for name in ("gcs_server", "raylet"))
    cluster.disconnect()
    assert left(marked) == []


def test_ray_that_does_not_start_is_an_error_with_a_remedy_and_leaves_no_process(
    marked: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private import services

    seen = []

    def failing(*_: Any) -> None:
        seen.append(left(marked))
        raise ValueError("on purpose")

    monkeypatch.setattr(services, "get_node", failing)
    with (
        caplog.at_level(logging.WARNING, logger="fl"),
        pytest.raises(ConfigError, match=r"Ray does not start .* executor=serial"),
    ):
        cluster.connect(None, 1, 1.0)
    assert caplog.text.count("Ray did not start") == len(seen) == 2
    assert all("raylet" in " ".join(names) for names in seen)
    assert left(marked) == []


def test_ray_that_dies_while_it_starts_is_not_awaited(
    marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    def killing(*_: Any) -> None:
        for process in cluster._running():
            if cluster._name(process) == "raylet":
                os.kill(process, signal.SIGKILL)
        raise RuntimeError("not there yet")

    monkeypatch.setattr(services, "get_node", killing)
    monkeypatch.setattr(cluster, "_ATTEMPTS", 1)
    with pytest.raises(ConfigError, match="Ray does not start") as refusal:
        cluster.connect(None, 1, 1.0)
    assert "raylet has ended" in str(refusal.value.__cause__)
    # An agent that a raylet had just started ends by itself when it finds that the raylet is gone.
    for _ in range(600):
        if not left(marked):
            break
        time.sleep(0.1)
    assert left(marked) == []


def test_termination_while_ray_starts_reaches_the_handler_that_was_there_before(
    marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own would end the process."""
    from ray._private import services

    class Told(BaseException):
        pass

    def tell(*_: Any) -> None:
        raise Told

    monkeypatch.setattr(services, "get_node", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, tell)
    try:
        with pytest.raises(Told):
            cluster.connect(None, 1, 1.0)
        assert signal.getsignal(signal.SIGTERM) is tell
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left(marked) == []
