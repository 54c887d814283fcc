"""The search of experiments' pages: interior optima, with as many trials for each method."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))

import tuned  # noqa: E402 - found by the line above
from protocol import Comparison, Method, Search, next_point, rung, value  # noqa: E402


@pytest.mark.parametrize(
    ("of", "number"), [(-3, 0.03), (-2, 0.1), (-1, 0.3), (0, 1), (1, 3), (2, 10)]
)
def test_rungs_are_one_and_three_times_powers_of_ten(of, number):
    assert value(of) == number
    assert rung(number) == of


@pytest.mark.parametrize("number", [0.0, 0.2, math.nan])
def test_a_value_that_has_no_rung_is_refused(number):
    with pytest.raises(ValueError, match="1 or 3 times"):
        rung(number)


@pytest.mark.parametrize("start", [(0, 0), (-3, 1), (1, -1)])
def test_search_ends_at_a_point_all_of_whose_neighbours_are_worse(start):
    tried = {}
    point = start
    for _ in range(16):
        tried[point] = (point[0] + 1) ** 2 + (point[1] - 1) ** 2 + point[0] * point[1] / 2
        point = next_point(tried, lambda point: True)
    best = min(tried, key=tried.get)
    for move in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        assert tried[best] < tried[best[0] + move[0], best[1] + move[1]]


def test_search_does_not_leave_the_grid_or_follow_what_diverged():
    tried, point = {}, (0,)
    for _ in range(4):
        assert point[0] <= 0
        tried[point] = math.inf if point[0] < -1 else -point[0]
        point = next_point(tried, lambda point: point[0] <= 0)
    assert set(tried) == {(0,), (-1,), (-2,), (-3,)}


def made_up(best: float):
    """Returns a stand-in for fl.run: the loss is least at a rate."""

    def run(*overrides):
        given = dict(each.partition("=")[::2] for each in overrides)
        assert "case" not in given  # a label, and no key
        apart = math.log(float(given["rate"]) / best) ** 2
        return SimpleNamespace(
            directory=None,
            summary={
                "seed": int(given["seed"]),
                "status": "completed",
                "config_digest": "-".join(overrides),
                "target": {"metric": "loss", "value": 0.0, "mode": "min"},
            },
            history=[{"round": 1, "time_s": 1.0, "loss": apart}],
        )

    return run


def test_every_method_has_as_many_trials_and_a_run_that_is_there_is_not_made_again(
    tmp_path, monkeypatch, capsys
):
    methods = {"near": Method((), {"rate": 0.1}), "far": Method((), {"rate": 3})}
    page = Comparison(tmp_path, ("a=b",), {"one": ()}, methods, "near", trials=6, seeds=(0, 1))
    monkeypatch.setattr(tuned, "fl", SimpleNamespace(run=made_up(0.1)))
    kept = tuned.KeptRuns(tmp_path)
    for name in methods:
        Search(page, kept, name).run_case("one")
        made = [run for run in kept.trials() if run.method == name]
        parts = [(run.part, run.given["rate"], run.summary["seed"]) for run in made]
        assert [part for part, _, _ in parts] == ["tune"] * 6 + ["final"] * 2
        assert parts[6:] == [("final", "0.1", 0), ("final", "0.1", 1)]
    assert capsys.readouterr().err == ""  # no best point is at an edge
    monkeypatch.setattr(tuned, "fl", None)
    again = tuned.KeptRuns(tmp_path)
    Search(page, again, "far").run_case("one")
    assert len(again.trials()) == 16


def test_only_trials_are_judged_by_held_out_training_examples():
    page = runpy.run_path(str(ROOT / "experiments" / "fedfix" / "run.py"))["COMPARISON"]
    assert "validation=0.2" in page.overrides("fedavg", "F-80", "tune", 100)
    assert "validation=0.2" not in page.overrides("fedavg", "F-80", "final", 0)
