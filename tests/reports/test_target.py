import math

import pytest

from fl.errors import ConfigError
from fl.reports.target import Target, best, better


@pytest.fixture
def rows(row):
    accuracy = [0.1, 0.55, 0.7, 0.65, 0.7]
    loss = [math.nan, 1.0, 0.5, math.nan, 0.5]  # NaN first: a plain min() would return it
    return [row(r, 10.0 * r, accuracy=accuracy[r], loss=loss[r]) for r in range(5)]


def test_the_cost_of_the_target_is_that_of_the_first_evaluation_beyond_it(rows):
    # Round 2 is the first with accuracy >= 0.6; the rest are the rates of the `row` fixture.
    assert Target("accuracy", 0.6).report(rows) == {
        "metric": "accuracy",
        "value": 0.6,
        "mode": "max",
        "reached": True,
        "round": 2,
        "time_s": 20.0,
        "wall_s": 2.0,
        "bytes_down": 2000,
        "bytes_up": 1000,
        "energy_j": 20.0,
        "bytes": 3000,
        "reason": None,
    }


def test_a_target_met_exactly_is_reached(rows):
    assert Target("accuracy", 0.7).report(rows)["round"] == 2
    assert Target("loss", 1.0, "min").report(rows)["round"] == 1


def test_a_target_that_was_not_reached_has_no_cost_but_a_reason(rows):
    report = Target("accuracy", 0.9).report(rows)
    assert report["reached"] is False
    costs = ("round", "time_s", "wall_s", "bytes", "bytes_down", "bytes_up", "energy_j")
    assert {report[name] for name in costs} == {None}
    assert report["reason"] == "not reached in 5 evaluations; the best was 0.7 in round 2"


def test_other_reasons_for_not_reaching(rows):
    assert Target("f1", 0.9).report(rows)["reason"] == (
        "no evaluation reported a number for 'f1'; there are: accuracy, loss"
    )
    assert Target("accuracy", 0.9).report([])["reason"] == "the run made no evaluation"
    assert Target("accuracy", 0.9).report(rows[:1])["reason"] == (
        "not reached in 1 evaluation; the best was 0.1 before training"
    )


@pytest.mark.parametrize("mode", ["max", "min"])
def test_nan_never_reaches_a_target(row, mode):
    assert not Target("loss", 1.0, mode).met_by(row(1, 1.0, loss=math.nan))
    assert not Target("loss", 1.0, mode).met_by(row(1, 1.0))


def test_best_is_the_first_among_equals_and_ignores_nan(rows):
    assert best(rows, "accuracy", "max") == {
        "value": 0.7,
        "round": 2,
        "time_s": 20.0,
        "mode": "max",
    }
    assert best(rows, "loss", "min")["round"] == 2
    assert best(rows, "f1", "max") is None


def test_losses_are_minimised_unless_the_target_says_otherwise():
    assert better("train_loss") == "min"
    assert better("accuracy") == "max"
    assert better("accuracy", Target("accuracy", 0.1, "min")) == "min"
    assert better("loss", Target("accuracy", 0.1)) == "min"


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_accuracy", "max"),
        ("trainLoss", "min"),
        ("accuracy/digits", "max"),
        ("node_accuracy_min", "max"),
        ("train_objective", "min"),
        ("logloss", "min"),
        ("F1", "max"),
        ("top5", "max"),
        ("staleness", None),
        ("absent_nodes", None),
        ("lost_payloads", None),
        ("consensus_distance", None),
        ("attack_success_rate", None),  # good for one side and bad for the other
        ("num_errors", None),
        ("lossy_clients", None),
        ("cost_eur", None),
    ],
)
def test_only_results_can_be_best(metric, mode):
    assert better(metric) == mode
    assert better(metric, Target(metric, 1.0, "min")) == "min"


def test_bad_targets_are_refused():
    with pytest.raises(ConfigError, match="mode is 'highest'; it must be 'max' or 'min'"):
        Target("accuracy", 0.9, "highest")
    with pytest.raises(ConfigError, match="value is nan"):
        Target("accuracy", math.nan)


@pytest.mark.parametrize(
    ("target", "ends"),
    [
        (Target("accuracy", 0.7, stop=True), {3, 5}),
        (Target("accuracy", 0.9, stop=True), set()),
        (Target("loss", 0.5, "min", stop=True), {3, 5}),
        (Target("accuracy", 0.9, patience=1), {4, 5}),
        (Target("accuracy", 0.9, patience=2), {5}),
        (Target("accuracy", 0.9, patience=3), set()),
        (Target("loss", 0.1, "min", patience=1), {5}),  # of the evaluations that report it
        (Target("accuracy", 0.55, patience=9), set()),
    ],
)
def test_a_run_ends_at_its_target_or_when_nothing_has_become_better(rows, target, ends):
    assert {n for n in range(6) if target.enough(rows[:n]) is not None} == ends


@pytest.mark.parametrize(("key", "value"), [("patience", 0), ("patience", 1.5), ("stop", 1)])
def test_what_ends_a_run_is_checked(key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value}"):
        Target("accuracy", 0.9, **{key: value})
