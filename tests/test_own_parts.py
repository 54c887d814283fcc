"""What docs/own_parts.md says of parts in a user's own files is so, for every kind of part.

Each of its sections is followed: what is in its fences goes into files of a folder that is none of
the project's, and its line runs there, for two rounds.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import fl.strategies
from fl.cli import main
from fl.runs.groups import groups

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_parts.md"
QUICK = ["executor=serial", "progress=false", "views=false", "num_rounds=2", "hydra.run.dir=run"]

# Groups whose members are none of a stranger's classes, and why.
WITHOUT_A_CONTRACT = {
    "battery": "one model, whose plugs are a `fleet/availability`",
    "checkpoint": "what is kept of a run does not depend on its parts",
    "executor": "where clients run changes no result",
    "goal": "sets keys of the root, as `experiment` does",
    "fleet/checkpointing": "three modes of one model, `fl.simulation.Checkpointing`",
    "fleet/radio": "numbers of one model, `fl.simulation.world.radio.Radio`",
    "length": "sets keys of the root, as `experiment` does",
    "tasks": "names members of data, partition, model and client",
}


class Section(NamedTuple):
    """What stands below a heading."""

    title: str
    files: dict[str, str]
    line: str

    @property
    def groups(self) -> list[str]:
        return re.findall(r"`([a-z_/]+)`", self.title)


def sections() -> Iterator[Section]:
    """Yields the page's; one without a module of its own has that of the first."""
    first = ""
    for text in PAGE.read_text("utf-8").split("\n## ")[1:]:
        codes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        first = first or codes[0]
        (module,) = codes or [first]
        yamls = re.findall(r"`([\w/]+\.yaml)`:\n\n```yaml\n(.*?)```", text, re.DOTALL)
        (line,) = re.findall(r"```\n(fl .*)\n```", text)
        yield Section(text.partition("\n")[0], {"mine.py": module, **dict(yamls)}, line)


SECTIONS = list(sections())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_what_a_section_says_runs_in_a_folder_of_its_own(section, tmp_path, monkeypatch):
    for name, text in section.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it, and it would stay
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*shlex.split(section.line), *QUICK])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        main()
        used = Path(sys.modules["mine"].__file__ or "").parent
    finally:
        sys.modules.pop("mine", None)
    assert used == tmp_path
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["status"] == "completed"
    assert summary["totals"]["rounds"] == 2


def test_every_group_has_a_section_or_a_reason_to_have_none():
    told = {group for section in SECTIONS for group in section.groups}
    assert {name for name, _ in groups()} - told == set(WITHOUT_A_CONTRACT)


def test_every_kind_of_rule_of_a_server_or_a_node_has_a_section():
    kinds = {
        name
        for name in fl.strategies.__all__
        if name.endswith("Rule") and inspect.isclass(getattr(fl.strategies, name))
    }
    derived = {base for s in SECTIONS for base in re.findall(r"\((\w+)\):", s.files["mine.py"])}
    shown = [getattr(fl.strategies, name) for name in derived if hasattr(fl.strategies, name)]
    derived |= {base.__name__ for kind in shown for base in kind.__mro__}
    assert len(kinds) > 5
    assert kinds <= derived
