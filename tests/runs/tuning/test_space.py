"""What is tuned, as the command line says it."""

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.runs.tuning import Space


def test_a_grid_is_every_combination_and_the_rest_is_of_all_runs():
    space = Space.of(["seed=3", "client.rule.lr=0.1,1", "strategy=fedavg,'fedprox'", "a=[1,2]"])
    assert space.fixed == ("seed=3", "a=[1,2]")
    assert space.points(5) == [
        ("client.rule.lr=0.1", "strategy=fedavg"),
        ("client.rule.lr=0.1", "strategy='fedprox'"),
        ("client.rule.lr=1", "strategy=fedavg"),
        ("client.rule.lr=1", "strategy='fedprox'"),
    ]


def test_intervals_are_drawn_from_evenly_or_by_powers_and_the_same_every_time():
    space = Space.of(["a=interval(2,4)", "b=tag(log,interval(0.001,10))", "c=x,y"])
    points = space.points(400)
    assert points == space.points(400)
    assert points[:7] == space.points(7)
    a, b = (np.array([float(p[i].split("=")[1]) for p in points]) for i in (0, 1))
    assert 2 <= a.min() < 2.1 < 3.9 < a.max() <= 4
    assert abs(a.mean() - 3) < 0.1
    assert 0.001 <= b.min() < b.max() <= 10
    assert abs(np.log10(b).mean() + 1) < 0.2
    assert 150 < sum(p[2] == "c=x" for p in points) < 250


def test_whole_numbers_are_drawn_with_both_bounds_alike():
    points = Space.of(["n=int(interval(1,4))"]).points(400)
    counts = [sum(p == (f"n={n}",) for p in points) for n in (1, 2, 3, 4)]
    assert sum(counts) == 400
    assert min(counts) > 60


def test_equal_values_are_one_and_drawn_points_have_no_edge():
    assert Space.of(["a=1,1,2,1"]).points(0) == [("a=1",), ("a=2",)]
    assert Space.of(["a=interval(0,1)", "b=8,16"]).edges(("a=0.3", "b=8")) == {}


@pytest.mark.parametrize(
    ("word", "best", "beyond"),
    [
        ("k=0.01,0.1,1", "k=1", {"k": "10"}),
        ("k=0.03,0.1", "k=0.03", {"k": "0.009"}),
        ("k=0.01,0.1,1", "k=0.1", {}),
        ("k=0,0.5", "k=0.5", {"k": "1"}),
        ("k=1,2,5", "k=5", {"k": "12"}),
        ("k=1,2,5", "k=1", {}),  # half of it is no whole number
        ("k=a,b", "k=b", {}),
        ("k=true,false", "k=true", {}),
        ("k=0.1,inf", "k=0.1", {}),
    ],
)
def test_an_edge_of_numbers_goes_on_by_their_ratio(word, best, beyond):
    space = Space.of([word, "m=sgd,adam"])
    point = (best, "m=sgd")
    assert space.edges(point) == beyond
    if beyond:
        wider, more = space.wider(beyond)
        assert more == [(f"k={beyond['k']}", f"m={m}") for m in ("sgd", "adam")]
        assert {*wider.points(0)} == {*space.points(0), *more}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a=1"], "nothing to tune"),
        (["a=interval(2,1)"], "a=interval"),
        (["a=tag(log,interval(0,1))"], "a=tag"),
        (["a=interval(0,inf)"], "a=interval"),
        (["a=1,2", "a=3"], "a is given twice"),
        (["a=1", "a=3,4"], "a is given twice"),
        (["a=glob(x*)"], "glob"),
    ],
)
def test_what_is_no_space_is_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        Space.of(words)
