"""TiFL: tiers of equal speed, credits, accuracies that decide."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_rounds import clients, run
from stand_ins import Scripted, ScriptedFaults

from fl.errors import ConfigError, SimulationError
from fl.flower.identity import client_of
from fl.selection import RoundEnd, TiFL
from fl.selection.tifl import change_probabilities
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import TaskFaults
from fl.strategies import FedAvg, Rounds


def rounds(n, *, over_selection=1.0, **arguments):
    return Rounds(FedAvg(), selection=TiFL(**arguments), clients=n, over_selection=over_selection)


def test_tiers_are_of_equal_speed_and_profiling_makes_no_version():
    strategy = rounds(2, num_tiers=3, interval=100, profiling_s=50.0)
    _, trace, times, _ = run(strategy, [6.0, 1.0, 5.0, 2.0, 4.0, 3.0], rounds=9)
    tiers = [[client_of(node) for node in tier] for tier in strategy.chooses.known.tiers]
    assert tiers == [[1, 3], [5, 4], [2, 0]]
    assert times[0] == 0.0
    assert times[1] - 6.0 in (2.0, 4.0, 6.0)  # after profiling, a round of one tier
    lasted = np.diff(times[1:])
    assert set(np.round(lasted, 6)) <= {2.0, 4.0, 6.0}
    # ceil(9 / 3) credits each, all of them spent
    assert sorted(np.round([times[1] - 6.0, *lasted], 6)) == [2.0] * 3 + [4.0] * 3 + [6.0] * 3
    assert len(clients(trace, Event.DISCARDED)) == 6  # the replies to profiling


def test_clients_that_never_answer_are_in_no_tier():
    strategy = rounds(1, num_tiers=2, profiling_rounds=2, profiling_s=3.0)
    run(strategy, [1.0, 2.0, 99.0], rounds=4)
    assert [[client_of(node) for node in tier] for tier in strategy.chooses.known.tiers] == [
        [0],
        [1],
    ]


def test_a_client_that_comes_after_profiling_is_timed_and_trained_with_its_tier():
    away = Scripted(4, {3: [20.0]}, offline=[3])
    strategy = rounds(1, num_tiers=2, interval=100, credits=99)
    _, trace, times, _ = run(strategy, [1.0, 2.0, 9.0, 1.5], rounds=60, availability=away)
    tiers = [[client_of(node) for node in tier] for tier in strategy.chooses.known.tiers]
    assert tiers == [[0, 3], [1, 2]]
    rows = zip(trace.time, trace.kind, trace.client, strict=True)
    events = [(t, Event(kind)) for t, kind, client in rows if client == 3]
    assert events[0][1] is Event.DISPATCH
    first = next(t for t in times if t >= 20.0)  # it is timed when the next round begins
    assert events[0][0] == first
    assert next(e for e in events if e[1] is Event.DISCARDED)[0] == first + 1.5
    assert any(kind is Event.APPLIED for _, kind in events)


def test_a_client_that_failed_while_it_was_timed_is_timed_again():
    faults = ScriptedFaults(script={(1, 0): TaskFaults(crash_at=0.5)})
    strategy = rounds(1, num_tiers=2, interval=100)
    _, trace, _, _ = run(strategy, [1.0, 2.0], rounds=20, faults=faults)
    assert [[client_of(node) for node in tier] for tier in strategy.chooses.known.tiers] == [
        [0],
        [1],
    ]
    assert set(clients(trace, Event.APPLIED)) == {0, 1}


def test_clients_without_a_tier_are_not_trained_while_the_others_are_away():
    away = Scripted(2, {0: [10.0, 500.0]})
    strategy = rounds(1, num_tiers=1, profiling_s=5.0)
    _, trace, times, _ = run(strategy, [1.0, 9.0], rounds=20, availability=away)
    assert set(clients(trace, Event.APPLIED)) == {0}
    assert times[-1] > 500.0


@pytest.mark.parametrize("profiling_s", [100.0, 2e4], ids=["deadline", "timeout"])
def test_without_any_tier_the_run_ends_and_says_so(profiling_s):
    # The timeout of the run is 1e4 s.
    strategy = rounds(1, num_tiers=2, profiling_s=profiling_s)
    with pytest.raises(SimulationError, match=r"none of the 2 clients .*profiling_s, .*: raise"):
        run(strategy, [3e4, 4e4], rounds=20)


def test_one_tier_is_plain_averaging():
    strategy = rounds(3, num_tiers=1, interval=100)
    _, _, _, models = run(strategy, [1.0, 2.0, 3.0], rounds=2)
    _, _, _, plain = run(Rounds(FedAvg(), clients=3), [1.0, 2.0, 3.0], rounds=2)
    np.testing.assert_allclose(models, plain)


def test_the_least_accurate_tier_becomes_the_most_likely():
    # n = 3 tiers with credits: 3/6, 2/6, 1/6 from the worst to the best.
    assert change_probabilities([0.9, 0.1, 0.5, 0.7], [1, 2, 0, 5]) == (1 / 6, 3 / 6, 0, 2 / 6)
    assert sum(change_probabilities([0.3] * 5, [1] * 5)) == pytest.approx(1.0)
    strategy = rounds(1, num_tiers=2, interval=2, credits=50)
    run(strategy, [1.0, 1.1, 5.0, 5.1], rounds=3)
    # Accuracies are i / 100, weighted by i + 1 examples; the fast clients are less accurate.
    assert strategy.chooses.known.accuracy == pytest.approx([0.02 / 3, 0.18 / 7])
    assert strategy.chooses.known.probabilities == (2 / 3, 1 / 3)


def test_a_round_of_profiling_that_everybody_lets_run_out_is_no_round_of_training():
    # Both have failed by the time to live, at the very instant at which profiling ends.
    strategy = rounds(1, num_tiers=2, profiling_rounds=2, profiling_s=1e4)
    with pytest.raises(SimulationError, match="none of the 2 clients"):
        run(strategy, [3e4, 4e4], rounds=20)
    assert strategy.chooses.known.profiled == 2


def test_learning_changes_no_earlier_state():
    rule = TiFL(profiling_s=10.0)
    first = rule.init(5)
    then = rule.learn(first, RoundEnd(1, failed={7: 3.0, 8: 12.0}, missed={9: 10.0}, trial=True))
    assert (first.profiled, first.latency_s) == (0, {})
    assert then.latency_s == {8: (10.0,), 9: (10.0,)}  # who fails early is timed again


@pytest.mark.parametrize(
    ("arguments", "key"),
    [({"num_tiers": 0}, "num_tiers is 0"), ({"profiling_s": -1.0}, "profiling_s is -1")],
)
def test_what_cannot_be_is_refused(arguments, key):
    with pytest.raises(ConfigError, match=key):
        TiFL(**arguments)
