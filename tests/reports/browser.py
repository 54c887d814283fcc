"""Headless Chromium by its DevTools protocol, over two pipes: no driver, no other package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((found for name in NAMES if (found := shutil.which(name))), None)
_WAIT_S = 60


class Browser:
    """One page of a browser that shows what it is told, and keeps what its scripts complain of.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        swap = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        options += ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", swap, "bash", PROGRAM, *options, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._heard: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._number, self._session = 0, ""
        self.complaints: list[str] = []
        pages = self._ask("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in pages if each["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def _listen(self) -> None:
        rest = b""
        while got := os.read(self._from, 2**20):
            *whole, rest = (rest + got).split(b"\0")
            for message in whole:
                self._heard.put(json.loads(message))

    def _ask(self, method: str, **given: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def _next(self) -> dict[str, Any]:
        try:
            said = self._heard.get(timeout=_WAIT_S)
        except Empty:
            raise AssertionError("the browser does not answer") from None
        if said.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["params"]["exceptionDetails"])[:500])
        if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
            self.complaints.append(said["params"]["entry"]["text"])
        return said

    def open(self, url: str, width: int = 1280, *, dark: bool = False) -> None:
        """Shows a page in a window of so many pixels, and waits until it is loaded."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """Returns what an expression of JavaScript is on the page; promises are waited for."""
        found = self._ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path, most: int | None = None) -> None:
        """Writes the page as a PNG: the whole, or so many pixels from its top."""
        given: dict[str, Any] = {"captureBeyondViewport": True}
        if most is not None:
            size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
            height = min(most, size["height"])
            given["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}
        shot = self._ask("Page.captureScreenshot", **given)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait(_WAIT_S)
        os.close(self._to)
