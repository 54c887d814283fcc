"""The numbers of experiments' pages are those of the results that are kept with them."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from fl.reports.page import BEGIN, END

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))

from results import FILE, keep, kept  # noqa: E402 - found by the line above

KEPT = sorted(path.parent for path in (ROOT / "experiments").rglob(FILE))


def made_again(page: Path) -> str:
    """Returns the tables of a page, from what is kept with it."""
    text = (page / "README.md").read_text(encoding="utf-8")
    name = page.relative_to(ROOT)
    by_tuned = re.search(rf"^    python experiments/tuned\.py report {name} (.*)$", text, re.M)
    if by_tuned:
        tuned = runpy.run_path(str(ROOT / "experiments" / "tuned.py"))
        return tuned["Report"](page, *by_tuned[1].split()).tables()
    (script,) = set(re.findall(rf"python {name}/(\S+\.py) tables", text))
    return runpy.run_path(str(page / script))["tables"](kept(page))


@pytest.mark.parametrize("page", KEPT, ids=lambda page: page.name)
def test_tables_of_a_page_are_made_of_the_results_that_are_kept_with_it(page):
    text = (page / "README.md").read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == made_again(page).strip(), "run the page's last command"


def test_records_come_back_as_they_were(tmp_path):
    records = [{"seed": 1, "who": "a", "loss": 0.1}, {"seed": 2, "who": "b", "time_s": 1e-300}]
    keep(tmp_path, records)
    assert kept(tmp_path) == records


def test_a_results_file_is_small():
    assert {page.name: size for page in KEPT if (size := (page / FILE).stat().st_size) > 2e5} == {}
