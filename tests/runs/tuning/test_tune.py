"""`fl tune` from the command line: what runs, how far, and what is found."""

import csv
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from fl.cli import main
from fl.errors import ConfigError
from fl.reports.runs import find_runs, read_run
from fl.reports.target import Target
from fl.runs.tuning import Halving, Space, command
from fl.runs.tuning.search import Search
from fl.runs.tuning.trials import Trials

FEW = ["num_clients=4", "fleet=uniform", "num_rounds=4"]


@pytest.fixture
def tuned(monkeypatch, tmp_path, capfd):
    """Runs a line of `fl tune` in a folder of its own; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it, and it would stay

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fl", "tune", *words])
        main()
        return capfd.readouterr().out

    return run


def test_the_best_rate_of_a_grid_runs_in_full_to_the_bits_of_a_plain_run(tuned):
    grid = [
        "client.rule.lr=0.001,0.1,1e12",
        *FEW,
        "--eta",
        "2",
        "--first",
        "1",
        "--widen",
        "0",
        "-o",
        "found",
    ]
    out = tuned(*grid)
    assert "fl -m num_clients=4 fleet=uniform num_rounds=4 client.rule.lr=0.1 seed=0,1,2" in out
    with open("found/tuning.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["client.rule.lr"] for row in rows] == ["0.1", "0.001", "1000000000000.0"]
    assert [row["num_rounds"] for row in rows] == ["4", "1", "1"]
    assert rows[2]["accuracy"] == "nan"  # it diverged
    (place,) = Path("found").glob("*lr=0.1*/seed=100-1-2-4")
    longest = read_run(place)
    assert longest.summary["seed"] == 100
    assert float(rows[0]["accuracy"]) == Target("accuracy", 1).end(longest.history)
    assert not list(Path("found").glob("*/*/checkpoint"))
    runs = len(find_runs("found"))
    assert tuned(*grid).count("accuracy") == out.count("accuracy")  # found again, and none is run
    assert len(find_runs("found")) == runs


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["num_rounds=3"], "nothing to tune"),
        (["seed=1,2"], "--seeds"),
        (["client.rule.lr=0.1,1", "--eta", "1"], "--eta"),
        (["client.rule.lr=0.1,1", "--first", "101"], "--first"),
        (["client.rule.lr=0.1,1", "--by", "time_limit_s"], "time_limit_s is null"),
        (["client.rule.lr=0.1,1", "client.train=false"], "client.train is false"),
        (["client.rule.lr=0.1,1", "--first", "1.5"], "--first"),
        (["client.rule.lr=0.1,-1"], "lr"),
        (["client.rule.lr=0.1,1", "target=null"], "target"),
        (["client.rule.lr=0.1,1", "hydra.run.dir=x"], "--out"),
        (["clint.rule.lr=0.1,1"], "client.rule.lr"),
        (["client.rule.lr=0.1,1", "--seeds", "a"], "--seeds"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_runs(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        command.main(words)
    assert not list(tmp_path.iterdir())


class Made(Trials):
    """Trials whose runs have been made: of rate r to a length n, r over n."""

    def result(self, point, seed, rung):
        value = float(point[0].split("=")[1]) / self.rungs[rung] + seed
        row = {"loss": value}
        return type("Run", (), {"summary": {"status": "completed"}, "history": [row]})()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_best_is_found_with_any_number_of_workers(workers):
    space, rungs = Space.of(["r=4,3,2,1,5,6,7,0.5"]), (1, 2, 4)
    trials = Made(Path(), (), (0,), "num_rounds", rungs)
    search = Search(space, trials, Target("loss", 0, "min"), Halving(3, 2), space.points(0))
    done, running = Future(), []
    done.set_result("")
    search.run(lambda point, rung: running.append((point, rung)) or done, workers, 0, print)
    best, rung = search.halving.winner()
    assert (search.points[best], rung) == (("r=0.5",), 2)
    assert len({*running}) == len(running) < 8 * len(rungs)


def test_a_grid_grows_until_its_best_point_lies_within_or_often_enough():
    def best_of(grid, widen):
        space = Space.of([grid])
        trials = Made(Path(), (), (0,), "num_rounds", (1,))
        search = Search(space, trials, Target("loss", 0, "min"), Halving(1, 3), space.points(0))
        done = Future()
        done.set_result("")
        search.run(lambda point, rung: done, 1, widen, print)
        return search.points[search.halving.winner()[0]][0], search.widened

    assert best_of("r=0.8,0.4", 3) == ("r=0.05", 3)  # the loss is r: less is always better
    assert best_of("r=0.8,0.4", 0) == ("r=0.4", 0)


@pytest.mark.slow
def test_lengths_may_be_in_simulated_seconds_and_points_drawn(tuned):
    words = ["client.rule.lr=tag(log,interval(0.001,1))", "num_clients=4", "fleet=uniform"]
    limits = ["num_rounds=1000", "time_limit_s=0.9", "--by", "time_limit_s", "--trials", "4"]
    out = tuned(*words, *limits, "--workers", "2")
    assert "4 points, each to time_limit_s=0.1" in out
    assert "time_limit_s=0.9 client.rule.lr=" in out
