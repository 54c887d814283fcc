"""The pages name what exists: every member of a group, and no file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = (
    "strategy",
    "selection",
    "client",
    "aggregator",
    "preaggregation",
    "attack",
    "compressor",
    "data",
    "partition",
    "model",
    "tasks",
    "length",
    "topology",
    "topology/weights",
    "fleet",
    "fleet/paces",
)


@pytest.mark.parametrize("group", GROUPS)
def test_every_member_of_a_group_is_on_the_methods_page(group):
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    members = {path.stem for path in (ROOT / "fl" / "conf" / group).glob("[!_]*.yaml")}
    assert members, "the group is empty"
    assert not [name for name in sorted(members) if f"`{name}`" not in page]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]
