"""Whoever types what docs/tutorial.md says, in an empty folder, gets what it says.

Its lines of `fl` are prepared by tests/test_documented_lines.py as well, which is quick.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
ROOT = PAGE.parents[1]
QUICK = ["progress=false", "views=false"]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """What the reader does: the name of a file and what is put there, or a language and code."""
    for fence in _FENCE.finditer(text):
        language, content = fence.groups()
        if language == "yaml":
            yield re.findall(r"`([\w/]+\.yaml)`", text[: fence.start()])[-1], content
        elif re.search(r"^class ", content, re.MULTILINE):
            yield "mine.py", content
        else:
            yield language, content


def put(place: Path, name: str, content: str) -> None:
    """Writes a file of the page's, or adds to `mine.py`, which the project has."""
    path = place / name
    before = path.read_text("utf-8") + "\n\n" if name == "mine.py" else ""
    path.write_text(before + content, "utf-8")


def killed(line: list[str], directory: Path) -> None:
    """Runs a line until it has answers of clients, and kills it."""
    command = [sys.executable, "-m", "fl", *line[1:], *QUICK]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        journal = directory / "checkpoint" / "journal"
        while run.poll() is None and not (journal.is_file() and journal.stat().st_size > 100_000):
            time.sleep(0.02)
        run.kill()
        assert run.wait() == -signal.SIGKILL, run.stderr.read()


@pytest.mark.slow
def test_the_page_leads_from_an_empty_folder_to_a_deployment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FL_DATA_DIR", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it, and it would stay
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("mine", None)
    names: dict[str, object] = {}
    told = io.StringIO()
    try:
        for kind, content in steps(PAGE.read_text("utf-8")):
            if kind == "python":
                with contextlib.redirect_stdout(told):
                    exec(compile(content, str(PAGE), "exec"), names)
            elif kind:
                put(Path(), kind, content)
                sys.modules.pop("mine", None)  # as a new process sees it
            for line in [] if kind else map(shlex.split, content.splitlines()):
                if line[0] == "cd":
                    monkeypatch.chdir(line[1])
                elif "hydra.run.dir=runs/long" in line:
                    killed(line, Path("runs/long"))
                else:
                    runs = any("=" in word for word in line) and line[1] != "partition"
                    monkeypatch.setattr(sys, "argv", [*line, *(QUICK if runs else [])])
                    time.sleep(1 - time.time() % 1)  # a directory is named by the second
                    differ = pytest.raises(SystemExit, match="1") if line[1] == "compare" else None
                    with differ or contextlib.nullcontext():
                        main()
    finally:
        sys.modules.pop("mine", None)
    assert told.getvalue().endswith("True\n")  # the deployment's model is the simulation's
    place = tmp_path / "first"
    runs = [path.parent for path in tmp_path.rglob("summary.json")]
    assert len(runs) == 1 + 1 + 2 + 2 + 12 + 1 + 2 + 1
    for run in runs:
        assert json.loads((run / "summary.json").read_text("utf-8"))["status"] == "completed"
    assert (place / "multirun" / "cells" / "report.html").is_file()
    rounds, buffer = (
        json.loads((place / "runs" / name / "summary.json").read_text("utf-8"))
        for name in ("rounds", "buffer")
    )
    assert rounds["totals"]["virtual_s"] > 600
    assert buffer["totals"]["virtual_s"] < 1
