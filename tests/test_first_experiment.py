"""Whoever types what docs/first_experiment.md says, in an empty folder, gets what it says."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "first_experiment.md"
QUICK = ["progress=false", "views=false", "num_rounds=3"]


def files(text: str) -> dict[str, str]:
    """What the page has the reader write."""
    _, *parts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    yamls = re.findall(r"`([\w/]+\.yaml)`.*?```yaml\n(.*?)```", text, re.DOTALL)
    named = re.findall(r"`([\w/]+\.yaml)`", text)
    assert [name for name, _ in yamls] == named
    return {"mine.py": "\n".join(parts), **dict(yamls)}


def lines(text: str) -> list[list[str]]:
    fences = re.findall(r"```\n(fl .*?)```", text, re.DOTALL)
    return [shlex.split(line) for fence in fences for line in fence.splitlines()]


def killed(line: list[str], directory: Path) -> None:
    """Runs a line until it has answers of clients, and kills it."""
    command = [sys.executable, "-m", "fl", *line[1:], "progress=false", "views=false"]
    with subprocess.Popen([*command, "num_rounds=100"], stderr=subprocess.PIPE, text=True) as run:
        journal = directory / "checkpoint" / "journal"
        while run.poll() is None and not (journal.is_file() and journal.stat().st_size > 100_000):
            time.sleep(0.02)
        run.kill()
        assert run.wait() == -signal.SIGKILL, run.stderr.read()


@pytest.mark.slow
def test_the_page_leads_from_an_empty_folder_to_a_comparison(tmp_path, monkeypatch):
    text = PAGE.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it, and it would stay
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], {})
    for name, content in files(text).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    try:
        for line in lines(text):
            if "hydra.run.dir=runs/long" in line:
                killed(line, tmp_path / "runs" / "long")
                continue
            quick = [] if line[1] in ("report", "resume") else QUICK
            monkeypatch.setattr(sys, "argv", [*line, *quick])
            time.sleep(1 - time.time() % 1)  # a directory is named by the second
            main()
    finally:
        sys.modules.pop("mine", None)
    runs = [
        *tmp_path.glob("outputs/*/*"),
        *tmp_path.glob("multirun/cells/*-*"),
        tmp_path / "runs" / "long",
    ]
    assert len(runs) == 6 + 9 + 1
    for run in runs:
        assert json.loads((run / "summary.json").read_text("utf-8"))["status"] == "completed"
    assert (tmp_path / "multirun" / "cells" / "report.html").is_file()
