"""The pages name what exists: their tables are made from it, and no link leads nowhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from fl.runs.groups import groups

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_RUNS = {"checkpoint", "executor", "experiment"}  # no methods


def test_every_group_of_methods_has_a_table():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert {name for name, _ in groups()} - OF_RUNS == set(
        re.findall(r"<!-- table: (\S+) -->", page)
    )


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_tables_are_what_their_script_writes(page):
    script = ROOT / "docs" / "tables.py"
    written = runpy.run_path(str(script))["written"]
    assert (ROOT / page).read_text(encoding="utf-8") == written(ROOT / page), f"run python {script}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]
