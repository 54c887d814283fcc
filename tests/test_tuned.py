"""The tables of experiments' pages: runs that end by the same cost, whatever they cost in all."""

import runpy
from pathlib import Path

import pytest

from fl.reports import Run

TUNED = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "tuned.py"))


def run(seed, *, steps, round_s, round_bytes, accuracies):
    target = {"metric": "accuracy", "value": 0.9, "mode": "max"}
    rows = [
        {
            "round": k,
            "time_s": k * round_s,
            "bytes_down": 0,
            "bytes_up": k * round_bytes,
            "accuracy": accuracy,
        }
        | ({"train_steps": steps} if k else {})
        for k, accuracy in enumerate(accuracies)
    ]
    return Run(Path("made"), {"seed": seed, "status": "finished", "target": target}, rows)


SLOW = [
    run(seed, steps=1, round_s=2.0, round_bytes=10**6, accuracies=[0, 0.2, 0.4, 0.5 + seed / 10])
    for seed in (0, 1, 2)
]
LARGE = [
    run(seed, steps=2, round_s=1.0, round_bytes=3 * 10**6, accuracies=[0, 0.3, 0.6, 0.7, 0.8, 0.8])
    for seed in (0, 1, 2)
]


@pytest.mark.parametrize(
    ("cost", "most", "rounds"), [("time_s", 4, 4), ("steps", 3, 1), ("MB", 6, 2)]
)
def test_a_run_ends_with_the_last_evaluation_that_does_not_cost_more(cost, most, rounds):
    assert TUNED["until"](LARGE[0], cost, most).history[-1]["round"] == rounds


def test_a_run_that_has_ended_before_is_not_taken_for_one_that_cost_as_much():
    with pytest.raises(ValueError, match=r"made has ended before 6\.5 s"):
        TUNED["until"](SLOW[0], "time_s", 6.5)


def test_methods_are_compared_seed_by_seed_at_the_same_cost():
    table = TUNED["at_ends"](
        {"slow": SLOW, "large": LARGE}, "slow", [("time_s", 5), ("steps", 3), ("MB", 3)]
    )
    head, _, slow, large = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    )
    assert head == [
        "method",
        "5 s",
        "less slow",
        "3 steps a node",
        "less slow",
        "3 MB",
        "less slow",
    ]
    assert slow == ["slow", "40.0 ± 0.0", "", "60.0 ± 10.0", "", "60.0 ± 10.0", ""]
    # Student's t of 2 degrees of freedom, 4.303, times 10 / sqrt(3) is 24.8
    apart = "-30.0 (-54.8 to -5.2)"
    assert large == [
        "large",
        "80.0 ± 0.0",
        "40.0 (40.0 to 40.0)",
        "30.0 ± 0.0",
        apart,
        "30.0 ± 0.0",
        apart,
    ]


def test_a_run_that_is_kept_is_not_made_again(tmp_path, monkeypatch):
    made = []

    def run_of(*overrides):
        made.append(overrides)
        found = run(1, steps=1, round_s=1.0, round_bytes=1, accuracies=[0, 0.5])
        found.summary["config_digest"] = "d"
        return found

    monkeypatch.setattr(TUNED["fl"], "run", run_of)
    given = ("method", "tune", "+experiment=a", "compressor=none", "compressor=e3m0", "seed=1")
    first = TUNED["KeptRuns"](tmp_path, ["executor=serial"]).run(*given)
    assert made == [("+experiment=a", "compressor=e3m0", "seed=1", "executor=serial")]
    kept = TUNED["KeptRuns"](tmp_path)
    assert kept.run(*given) == first
    assert len(made) == 1
    kept.run(*given[:-1], "seed=2")
    assert len(made) == 2
    again = TUNED["KeptRuns"](tmp_path)
    again.run(*given)
    again.prune()
    assert [one.given["seed"] for one in TUNED["read_trials"](tmp_path)] == ["1"]
