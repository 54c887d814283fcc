"""The pages name what exists: their tables are made from it, and no link leads nowhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from fl.runs.groups import groups

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/**/README.md"))
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))
OF_RUNS = {"checkpoint", "executor", "experiment"}  # no methods


def test_every_group_of_methods_has_a_table():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert {name for name, _ in groups()} - OF_RUNS == set(
        re.findall(r"<!-- table: (\S+) -->", page)
    )


@pytest.mark.parametrize("page", TABLES["PAGES"], ids=lambda page: page.parent.name)
def test_tables_are_what_their_script_writes(page):
    assert page.read_text(encoding="utf-8") == TABLES["written"](page), "run python docs/tables.py"


def test_every_experiment_has_a_page():
    folders = {path for path in (ROOT / "experiments").iterdir() if path.is_dir()}
    without = {path.name for path in folders if not (path / "README.md").is_file()}
    assert without <= {"__pycache__"}


@pytest.mark.parametrize("page", EXPERIMENTS, ids=lambda page: page.parent.name)
def test_an_experiment_says_at_its_top_what_its_verdicts_rest_on(page):
    said = TABLES["experiment"](page)
    protocol = said.protocol.removeprefix("no: ")
    assert protocol == "yes" or set(protocol.split(", ")) <= TABLES["SHORT_OF_PROTOCOL"].keys()
    assert said.cost.startswith("not recorded") or said.minutes is not None
    scripts = re.findall(r"experiments/\S+\.(?:sh|py)", said.command)
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    for claim in said.claims:
        assert claim.verdict in TABLES["VERDICTS"]
        assert all(claim)  # what is not known is said to be
        drawn = re.match(r"\d+", claim.seeds)
        assert drawn or claim.seeds == "none drawn"
        least = {"(a)": 3, "(b)": 2, "(c)": 3}.get(claim.verdict[:3], 0)
        assert drawn is None or int(drawn[0]) >= least


def test_what_is_measured_again_are_claims_with_a_verdict():
    checks = runpy.run_path(str(ROOT / "experiments" / "quick.py"))["CHECKS"]
    assert checks
    assert [each.claim for each in checks if each.said.verdict == "undecided"] == []


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "experiments" / "README.md", *EXPERIMENTS],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]
