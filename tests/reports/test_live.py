"""The live page: what is served, to whom, and when it is another one. See test_in_a_browser.py."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from test_report import leave, read

from fl.errors import ConfigError
from fl.reports.live import Site, running, server
from fl.reports.report import main


@contextlib.contextmanager
def served(root):
    made = server(Site([root]))
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def test_only_the_page_is_served_and_only_to_this_machine(tmp_path):
    (tmp_path / "secret").write_text("x")
    with served(tmp_path) as address:
        for path in ("/secret", "/../secret", "/%2e%2e/secret", "//secret", "/version/x"):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(address + path)
            assert error.value.code == 404
        asked = urllib.request.Request(f"{address}/", headers={"Host": "rebound.example"})
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(asked)
        assert error.value.code == 403


def test_a_run_that_goes_on_is_shown_apart_and_moves_when_it_ends(tmp_path, row):
    leave(tmp_path / "a", row, 0, [0.1, 0.5], lr=0.1)
    leave(tmp_path / "b", row, 0, [0.1, 0.2], lr=0.2)
    summary = (tmp_path / "b" / "summary.json").read_text()
    (tmp_path / "b" / "summary.json").unlink()
    assert [run.directory.name for run in running([tmp_path])] == ["b"]
    site = Site([tmp_path])
    first, text = site.version(), site.page()
    assert site.page() is text  # nothing has changed, and nothing is drawn
    assert first in text
    assert "Running" in text
    assert "left out" not in text
    assert not read(text).links  # nothing else is served
    (tmp_path / "b" / "summary.json").write_text(summary)
    assert site.version() != first
    assert "Running" not in site.page()


def test_a_folder_that_is_none_of_ours_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("<script>,b\n1,2\n")
    assert running([tmp_path]) == []
    assert "no run has been evaluated yet" in Site([tmp_path]).page()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--port", "99999", "--live"], "--port is 99999"),
        (["--port", "80"], "--port is 80, and only --live"),
        (["--live", "-o", "a.html"], "-o is a.html"),
    ],
)
def test_what_a_live_page_cannot_take_is_refused(tmp_path, more, said):
    with pytest.raises(ConfigError, match=said):
        main([str(tmp_path), *more])


def test_runs_that_go_on_are_named_by_what_tells_them_from_those_that_have_ended(tmp_path, row):
    for name in ("fedavg", "fedprox"):
        leave(tmp_path / name, row, 0, [0.1, 0.5], name=name)
        (tmp_path / name / ".hydra").mkdir()
        given = f"[strategy={name}, num_clients=4, fleet=mobile]"
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(given)
    (tmp_path / "fedprox" / "summary.json").unlink()
    rows = [found for found in read(Site([tmp_path]).page()).rows if found]
    assert {found[0] for found in rows if found[0].startswith("strategy=")} == {
        "strategy=fedavg",
        "strategy=fedprox",
    }


def test_nothing_is_said_of_a_browser_that_is_closed_while_it_is_answered(monkeypatch, capsys):
    asked, gone = threading.Event(), threading.Event()

    def page(_):
        asked.set()
        assert gone.wait(10)
        return "x" * 10**7

    monkeypatch.setattr(Site, "page", page)
    before = set(threading.enumerate())
    with served(Path()) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as browser:
            browser.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert asked.wait(10)
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.set()
        for thread in set(threading.enumerate()) - before:
            if "process_request" in thread.name:
                thread.join(10)
    assert capsys.readouterr().err == ""
