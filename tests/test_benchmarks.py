"""What benchmarks say of their goals: one table, and figures by commit."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ABOUT = {"commit": "a" * 40, "changed_since": False, "cores": 2, "date": "2026-01-01"}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "report", raising=False)
    import report

    yield report
    sys.modules.pop("report")


def publish(report, folder, name, *goals, quick=False, commit="a"):
    settings = argparse.Namespace(quick=quick)
    about = {**ABOUT, "commit": commit * 40}
    report.publish(folder / f"{name}.json", [], settings, about, goals)


def test_what_is_left_is_the_factor_to_the_bound(report):
    assert report.Goal("rate", 15.0, 60.0).left == 4.0
    assert report.Goal("rate", 120.0, 60.0).left == 0.5
    assert report.Goal("s", 90.0, 60.0, most=True).left == 1.5
    assert report.Goal("s", 30.0, 60.0, most=True).left == 0.5


def test_one_table_has_all_goals_and_says_which_are_reached(report, tmp_path, capsys):
    publish(report, tmp_path, "one", report.Goal("rate", 15.0, 60.0), quick=True)
    publish(report, tmp_path, "two", report.Goal("s", 30.0, 60.0, most=True))
    publish(report, tmp_path, "without")
    capsys.readouterr()
    assert report.summarise(tmp_path) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert ["one*", "rate", "15", ">=", "60", "4.00", "x", "aaaaaaaaaaaa"] in lines
    assert ["two", "s", "30", "<=", "60", "reached", "aaaaaaaaaaaa"] in lines


def test_the_history_keeps_each_commits_last_figures(report, tmp_path):
    for commit, figure in (("a", 1.0), ("a", 2.0), ("b", 3.0)):
        publish(report, tmp_path, "one", report.Goal("rate", figure, 60.0), commit=commit)
        report.summarise(tmp_path)
    with (tmp_path / report.HISTORY).open(newline="") as file:
        rows = [(row["commit"], float(row["figure"])) for row in csv.DictReader(file)]
    assert rows == [("a" * 12, 2.0), ("b" * 12, 3.0)]
    page = (tmp_path / "history.md").read_text()
    assert f"| | | {'a' * 12} | {'b' * 12} | goal |" in page
    assert "| one | rate | 2 | 3 | 60 |" in page
