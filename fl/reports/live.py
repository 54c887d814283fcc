"""`fl report --live DIR...`: the page about runs that go on, on this machine.

The page is served on the loopback interface alone. Nothing is read that a request names: there is
the page, and its version; and requests for another host's name, as a page of another site could
make, are refused.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from fl.errors import ConfigError
from fl.reports.files import read_file
from fl.reports.history import read_history
from fl.reports.jobs import JOBS
from fl.reports.report import failed_jobs, page
from fl.reports.runs import Run, load_runs
from fl.reports.shell import policy

HOST = "127.0.0.1"
_OF_A_RUN = ("summary.json", "metrics.csv", JOBS)
_CONFIG_BYTES = 10**6


class Site:
    """The page about what is at or below directories, made anew when something there changes.

    Args:
        roots: directories of runs or sweeps; they may come to be later.
        title: of the page; None says in what the runs differ.
    """

    def __init__(self, roots: Sequence[Path], title: str | None = None) -> None:
        self._roots, self._title = roots, title
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None

    def version(self) -> str:
        """Returns a digest of which files there are, how large they are and when they changed."""
        found = hashlib.sha256()
        for root in self._roots:
            for path in sorted(p for name in _OF_A_RUN for p in root.rglob(name)):
                try:
                    status = path.stat()
                except OSError:  # removed just now
                    continue
                said = f"{path}|{status.st_size}|{status.st_mtime_ns}\n"
                found.update(said.encode("utf-8", "replace"))
        return found.hexdigest()[:16]

    def page(self) -> str:
        """Returns the page as HTML."""
        with self._lock:  # drawing takes a second, and many may ask
            version = self.version()
            if self._made is None or self._made[0] != version:
                self._made = version, self._page(version)
            return self._made[1]

    def _page(self, version: str) -> str:
        there = [root for root in self._roots if root.is_dir()]
        going = running(there)
        runs, problems = load_runs(there)
        failed, unread = failed_jobs(there, runs)
        known = {str(run.directory) for run in going}
        told = [p for p in [*problems, *unread] if not any(p.startswith(f"{k}/") for k in known)]
        return page(runs, told, failed, None, self._title, going, version)


def running(roots: Sequence[Path]) -> list[Run]:
    """Returns the runs at or below directories that have a row and have not ended.

    Their summaries have what is known while a run goes on. One that was killed is among them.
    """
    found = []
    for folder in sorted({path.parent for root in roots for path in root.rglob("metrics.csv")}):
        if (folder / "summary.json").exists():
            continue
        try:
            rows = read_history(folder / "metrics.csv")
        except ConfigError:  # begun just now, or none of ours
            continue
        if rows:
            summary = {"status": "running", "config": _config(folder), "target": None}
            found.append(Run(folder, summary, rows))
    return found


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / ".hydra" / "config.yaml"
    try:
        found = yaml.safe_load(read_file(path, _CONFIG_BYTES))
    except (ConfigError, OSError, RecursionError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def server(site: Site, port: int = 0) -> ThreadingHTTPServer:
    """Returns what serves a site on the loopback interface; `serve_forever` begins.

    Args:
        site: what is served.
        port: 0 takes any that is free.

    Raises:
        ConfigError: the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # s that a connection may be silent

        def do_GET(self) -> None:
            """Answers with the page or its version."""
            name = self.headers.get("Host", "").partition(":")[0]
            if name not in (HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self._answer(site.page(), "text/html")
            elif self.path == "/version":
                self._answer(site.version(), "text/plain")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, text: str, kind: str) -> None:
            content = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            allowed = f"{policy(live=True)}; frame-ancestors 'none'"
            self.send_header("Content-Security-Policy", allowed)
            with suppress(ConnectionError):  # the browser was closed, or has gone elsewhere
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Says nothing of requests."""

    if not 0 <= port < 2**16:
        raise ConfigError(f"--port is {port}; it must be 0 to {2**16 - 1}")
    try:
        made = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise ConfigError(f"--port is {port}, which cannot be had: {error.strerror}") from error
    made.daemon_threads = True
    return made


def serve(
    roots: Sequence[Path], title: str | None, port: int | None, output: Path | None = None
) -> None:
    """Serves the page until the user stops it.

    Raises:
        ConfigError: the port cannot be had, or a file is asked for as well.
    """
    if output is not None:
        raise ConfigError(f"-o is {output}, and a live page is no file: leave one of both out")
    with server(Site(roots, title), port or 0) as made:
        print(f"http://{HOST}:{made.server_address[1]}/ (stop it with Ctrl-C)", flush=True)
        try:
            made.serve_forever()
        except KeyboardInterrupt:
            print()
