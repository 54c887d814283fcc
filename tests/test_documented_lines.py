"""Every line of the pages and of the configuration that can be typed is run, or at least parsed.

What is in a fence of README.md, CONTRIBUTING.md or docs/ is Python, TOML, output (```text) or
commands. Python runs. Each command is of a kind below; of another kind, the test fails. `fl` lines,
those in the comments of fl/conf included, are prepared: all parts are built and checked, and all that
is set is read. The README's runs are run to their ends by a slow test, and reach what is said there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
import typer
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

import fl
from fl import usage
from fl.configuration import check_values
from fl.experiment import prepare
from fl.simulation.fleets import uniform

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "fl" / "conf"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# What stands in the pages for something of the reader's.
SUBSTITUTIONS = {
    "app=DIR": "app=examples/fedbuff_app",
    "app=my_app": "app=examples/fedbuff_app",
    "fl -m ... ": "fl -m strategy=fedavg,fedprox ",
    "server.example": "127.0.0.1",
    "HOST:": "127.0.0.1:",
    "PATH": "fl_behaviour.json",
}
# Members that read a file which is not among the data: these lines are composed, and not built.
WITHOUT_FILES = ("fleet/availability=behaviour",)
LANGUAGES = ("", "python", "toml", "text")


class Fence(NamedTuple):
    """What is between two lines of ```."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


class Line(NamedTuple):
    """A command, as it is written."""

    place: str
    text: str

    @property
    def words(self) -> list[str]:
        text = self.text
        for word, instead in SUBSTITUTIONS.items():
            text = text.replace(word, instead)
        return shlex.split(text, comments=True)

    @property
    def needs_data(self) -> bool:
        return "FL_DATA_DIR=..." in self.words

    @property
    def command(self) -> list[str]:
        """The words after settings of the environment, the program's by its name."""
        words = [word for word in self.words if not word.startswith("FL_DATA_DIR=")]
        return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def fences(page: Path) -> Iterator[Fence]:
    lines = page.read_text("utf-8").splitlines()
    marks = [i for i, line in enumerate(lines) if line.startswith("```")]
    for first, last in zip(marks[::2], marks[1::2], strict=True):
        text = "\n".join(lines[first + 1 : last])
        yield Fence(page, first + 1, lines[first].removeprefix("```"), text)


def commands(fence: Fence) -> Iterator[Line]:
    for text in fence.text.replace("\\\n", " ").splitlines():
        if text.strip() and not text.startswith("#"):
            yield Line(fence.name, text)


def of_comments(path: Path) -> Iterator[Line]:
    """The first lines of a YAML that say how its member is used."""
    for text in path.read_text("utf-8").splitlines():
        if not text.startswith("#"):
            return
        found = re.match(r"# (?:[^`]*: )?((?:FL_DATA_DIR=\.\.\. )?fl .*)", text)
        if found and path.name != "config.yaml":
            yield Line(str(path.relative_to(CONF)), found[1])


FENCES = [fence for page in PAGES for fence in fences(page)]
LINES = [line for fence in FENCES if fence.language == "" for line in commands(fence)]
FL = [line for line in LINES if line.command[0] == "fl"]
FL += [line for path in sorted(CONF.rglob("*.yaml")) for line in of_comments(path)]
OTHERS = [line for line in LINES if line.command[0] != "fl"]
PYTHON = [fence for fence in FENCES if fence.language == "python"]


def test_every_fence_says_what_is_in_it():
    assert {fence.language for fence in FENCES} <= set(LANGUAGES)
    assert len(PYTHON) > 3
    assert len(FL) > 150


def test_every_member_says_how_it_is_used():
    paths = {p for p in CONF.rglob("*.yaml") if not p.name.startswith("_") and p.parent != CONF}
    assert not [str(p.relative_to(CONF)) for p in sorted(paths) if not list(of_comments(p))]


# ---- lines of fl ---------------------------------------------------------------------------------


def jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; an interval of a sweeper stands for its middle."""
    choices = []
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith("interval("):
            low, high = map(float, value[9:-1].split(","))
            choices.append([f"{key}={(low + high) / 2}"])
        elif "," in value and not value.startswith(("[", "{", "'")):
            choices.append([f"{key}={each}" for each in value.split(",")])
        else:
            choices.append([override])
    for job in product(*choices):
        yield list(job)


def prepared(overrides: list[str]) -> None:
    """Builds and checks a run as `fl` does before anything starts."""
    folder = str(CONF)
    with initialize_config_dir(folder, version_base=None, job_name="fl"):
        config = compose("config", overrides, return_hydra_config=True)
        known, before = HydraConfig.instance(), HydraConfig.instance().cfg
        known.set_config(config)
        try:
            with open_dict(config):
                del config["hydra"]
            if not any(override in WITHOUT_FILES for override in overrides):
                prepare(config, check_values(config))
        finally:
            known.cfg = before


@pytest.mark.parametrize("line", FL, ids=lambda line: f"{line.place}: {line.text[:60]}")
def test_every_line_of_fl_asks_for_what_can_be(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    if line.needs_data and not os.environ.get("FL_DATA_DIR"):
        pytest.skip("reads files from FL_DATA_DIR, which is not set")
    words = line.command[1:]
    if words[0] in usage.COMMANDS:
        assert len(words) > 1
        return
    assert usage.answer(words) is None
    overrides = [w for w in usage.given(words) if not w.startswith("hydra")]
    sweep = "-m" in words
    for job in jobs(overrides) if sweep else [overrides]:
        prepared(job)
