"""Whom a round asks and when it ends: over-selection, deadlines, TiFL's tiers, Oort's scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from stand_ins import FakeExecutor, FixedWork, Scripted, ScriptedFaults

from fl.aggregation import Median
from fl.errors import ConfigError, SimulationError
from fl.execution.contract import Result
from fl.flower.identity import client_of, node_id
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.durations import ShiftedExponential
from fl.simulation.world.faults import Faults, TaskFaults
from fl.simulation.world.fleets import durations
from fl.strategies import FedAdam, FedAvg, FedAvgM, FedYogi, Oort, QFedAvg, Rounds, TiFL
from fl.strategies.drivers.events import GlobalModel
from fl.strategies.oort import Record
from fl.strategies.round_rule import Updates
from fl.strategies.tifl import change_probabilities

START = np.zeros(2, dtype=np.float32)


class Seconds:
    """Clients with given task times."""

    def __init__(self, seconds):
        self.seconds = seconds

    def factors(self, seed, num_clients):
        return np.array(self.seconds, dtype=np.float64)


def answer(request):
    """Client i returns w + i, of i + 1 examples; its loss is i, its accuracy i / 100."""
    i = request.client
    metrics = {"num-examples": i + 1, "train-loss": float(i), "accuracy": i / 100}
    content = {"metrics": MetricRecord(metrics)}
    if request.message_type == "train":
        w = request.payload.content["arrays"]["w"].numpy()
        content["arrays"] = ArrayRecord({"w": Array((w + i).astype(np.float32))})
    return Result(content=RecordDict(content))


def run(strategy, seconds, *, rounds=1, task=None, faults=None, seed=0, availability=None):
    trace = Trace()
    n = seconds if isinstance(seconds, int) else len(seconds)
    client = None if isinstance(seconds, int) else Seconds(seconds)
    grid = SimGrid(
        durations(
            n,
            seed,
            task_factor=task,
            client_factor=client,
            faults=faults,
            availability=availability,
        ),
        FakeExecutor(answer),
        planner=lambda *_: FixedWork(1.0),
        trace=trace,
    )
    times, models = [], []

    def evaluate(version, arrays):
        times.append(grid.clock.now())
        models.append(arrays["w"].numpy().copy())

    arrays = ArrayRecord({"w": Array(START)})
    strategy.start(grid, arrays, num_rounds=rounds, timeout=1e4, evaluate_fn=evaluate)
    return grid, trace, times, models


def clients(trace, *kinds):
    return [c for kind, c in zip(trace.kind, trace.client, strict=True) if Event(kind) in kinds]


# ---- any rule, anybody ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [FedAvg(eta=0.5), FedAvgM(beta=0.7), FedAdam(tau=0.1), FedYogi(tau=0.1), QFedAvg(q=0.5)],
    ids=lambda rule: type(rule).__name__,
)
def test_the_driver_makes_the_steps_that_the_rule_makes_by_itself(rule):
    n = 3
    _, _, _, models = run(Rounds(rule, clients=n), [1.0, 2.0, 3.0], rounds=4)
    deltas = np.repeat(np.arange(n, dtype=np.float32)[:, None], 2, axis=1)
    metrics = [{"train-loss": float(i)} for i in range(n)]
    state = rule.init(START, 2)
    for model in models:
        np.testing.assert_allclose(model, state.w, rtol=1e-5)
        state = rule.step(state, Updates(deltas, np.arange(1.0, n + 1), metrics))


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"fraction_train": 0.5, "min_train_nodes": 2}, 4),
        ({"fraction_train": 0.1, "min_train_nodes": 3}, 3),
        ({"fraction_train": 0.0, "min_train_nodes": 0}, 1),
        ({"fraction_train": 0.1}, 8),  # the whole fleet is less than the ten that are the default
        ({"clients": 5, "fraction_train": 1.0}, 5),
        ({"fraction_train": 0.5, "min_train_nodes": 2, "over_selection": 1.5}, 6),
    ],
    ids=str,
)
def test_a_round_asks_a_share_of_those_that_are_there_but_at_least_a_number(arguments, asked):
    _, trace, _, _ = run(Rounds(FedAvg(), **arguments), [1.0] * 8)
    assert len(set(clients(trace, Event.DISPATCH))) == asked


def test_the_share_is_of_those_that_are_there():
    away = Scripted(8, {i: [50.0] for i in range(4)}, offline=range(4))
    strategy = Rounds(FedAvg(), fraction_train=0.5, min_train_nodes=1)
    _, trace, _, _ = run(strategy, [20.0] * 8, rounds=5, availability=away)
    begun = [t for t, kind in zip(trace.time, trace.kind, strict=True) if kind == Event.DISPATCH]
    assert [begun.count(t) for t in sorted(set(begun))] == [2, 2, 2, 4, 4]


def test_the_first_round_waits_until_enough_clients_are_there():
    away = Scripted(3, {2: [35.0]}, offline=[2])
    strategy = Rounds(FedAvg(), min_train_nodes=1, min_available_nodes=3, retry_s=10.0)
    _, trace, times, _ = run(strategy, [1.0] * 3, availability=away)
    assert trace.time[0] == 40.0
    assert times[-1] == 41.0


def test_different_clients_are_asked_in_different_rounds_and_all_equally_often():
    strategy = Rounds(FedAvg(), clients=2)
    _, trace, _, _ = run(strategy, [1.0] * 6, rounds=300)
    counts = np.bincount(clients(trace, Event.DISPATCH))
    # 2 of 6 in each of 300 rounds: 100 each, with a deviation of 8.2.
    np.testing.assert_allclose(counts, 100, atol=33)
    _, other, _, _ = run(Rounds(FedAvg(), clients=2, seed=1), [1.0] * 6, rounds=20)
    assert clients(other, Event.DISPATCH) != clients(trace, Event.DISPATCH)[:40]


def test_clients_evaluate_each_new_model_before_the_server_does():
    asked = []

    class Noting(Rounds):
        def start(self, grid, *args, **kwargs):
            exchange = grid.send_and_receive

            def noting(messages, **more):
                messages = list(messages)
                kinds = {message.metadata.message_type for message in messages}
                w = messages[0].content["arrays"]["w"].numpy()
                asked.append((kinds, len(messages), w[0], grid.clock.now()))
                return exchange(messages, **more)

            grid.send_and_receive = noting
            return super().start(grid, *args, **kwargs)

    strategy = Noting(FedAvg(), clients=2, fraction_evaluate=0.5, min_evaluate_nodes=1)
    _, _, times, models = run(strategy, [1.0] * 4, rounds=3)
    assert [(kinds, n, w) for kinds, n, w, _ in asked] == [
        ({"evaluate"}, 2, model[0]) for model in models[1:]
    ]
    # A round is 1 s of training and 1 s of evaluation; then the server evaluates.
    assert [when for *_, when in asked] == [1.0, 3.0, 5.0]
    assert times == [0.0, 2.0, 4.0, 6.0]


# ---- over-selection and deadlines ----------------------------------------------------------------


def test_the_first_to_answer_are_averaged_by_examples_and_the_rest_told_to_stop():
    strategy = Rounds(FedAvg(), clients=2, over_selection=2.0)
    grid, trace, times, models = run(strategy, [4.0, 3.0, 2.0, 1.0])
    assert times == [0.0, 2.0]
    assert models[1] == pytest.approx((4 * 3 + 3 * 2) / 7)  # clients 3 and 2
    assert len(clients(trace, Event.DISPATCH)) == 4
    assert sorted(clients(trace, Event.APPLIED)) == [2, 3]
    assert grid.client_updates == 2
    sent = grid.engine.bytes_down
    assert sent == 4 * trace.bytes[0]  # all four were sent the model, and it counts


def test_without_abort_late_clients_stay_busy_and_are_discarded():
    strategy = Rounds(FedAvg(), clients=2, over_selection=2.0, abort=False)
    _, trace, times, _ = run(strategy, [4.0, 3.0, 2.0, 1.0], rounds=3)
    # Rounds two and three have only clients 3 and 2 idle, then whoever has come back meanwhile.
    assert times[:3] == [0.0, 2.0, 4.0]
    assert not clients(trace, Event.CANCELLED)
    assert set(clients(trace, Event.DISCARDED)) == {0, 1}


def test_a_factor_of_one_waits_for_all():
    _, _, times, models = run(Rounds(FedAvg(), clients=3), [1.0, 2.0, 3.0], rounds=2)
    assert times == [0.0, 3.0, 6.0]
    assert models[1] == pytest.approx((0 * 1 + 1 * 2 + 2 * 3) / 6)


@pytest.mark.parametrize(("fraction", "applied"), [(0.5, [0, 1]), (0.75, [])])
def test_at_the_deadline_a_minimum_decides_whether_the_round_counts(fraction, applied):
    strategy = Rounds(FedAvg(), clients=4, deadline_s=2.0, min_fraction=fraction)
    _, trace, times, models = run(strategy, [1.0, 2.0, 2.5, 9.0], rounds=2)
    # A reply at the very deadline counts. An abandoned round is a round, without a change.
    assert times == [0.0, 2.0, 4.0]
    assert sorted(set(clients(trace, Event.APPLIED))) == applied
    assert (models[2] == models[0]).all() == (not applied)


@pytest.mark.parametrize(("answering", "applied"), [(5, 5), (4, 0), (1, 0)])
def test_by_default_a_round_needs_half_of_its_replies(answering, applied):
    strategy = Rounds(FedAvg(), clients=10, deadline_s=2.0)
    seconds = [1.0] * answering + [9.0] * (10 - answering)
    _, trace, _, _ = run(strategy, seconds)
    assert len(clients(trace, Event.APPLIED)) == applied


@pytest.mark.parametrize(("fleet", "answering"), [(1, 1), (4, 2), (5, 3)])
def test_a_fleet_smaller_than_a_round_needs_half_of_what_it_has(fleet, answering):
    for few, applied in ((answering, answering), (answering - 1, 0)):
        seconds = [1.0] * few + [9.0] * (fleet - few)
        _, trace, _, _ = run(Rounds(FedAvg(), clients=10, deadline_s=2.0), seconds)
        assert len(clients(trace, Event.APPLIED)) == applied


def test_a_round_ends_when_everybody_left_has_failed():
    class Two(Faults):
        def draw(self, seed, client, dispatch):
            from fl.simulation.world.faults import TaskFaults

            return TaskFaults(crash_at=0.5 if client >= 2 else None)

    strategy = Rounds(FedAvg(), clients=4)
    _, trace, times, _ = run(strategy, [1.0, 2.0, 3.0, 8.0], rounds=1, faults=Two())
    assert times == [0.0, 4.0]  # client 3 crashes half-way
    assert sorted(clients(trace, Event.APPLIED)) == [0, 1]


def test_exponential_rounds_take_the_difference_of_harmonic_numbers():
    rounds, kept, chosen = 150, 4, 6
    strategy = Rounds(FedAvg(), clients=kept, over_selection=1.5)
    _, _, times, _ = run(strategy, chosen, rounds=rounds, task=ShiftedExponential())
    terms = [1 / (chosen - j) for j in range(kept)]
    error = math.sqrt(sum(t * t for t in terms) / rounds)
    assert times[-1] / rounds == pytest.approx(sum(terms), abs=4 * error)


def test_any_rule_combines_the_models():
    _, _, _, models = run(Rounds(FedAvg(eta=0.5), aggregator=Median(), clients=3), [1.0, 2.0, 3.0])
    assert models[1] == pytest.approx(0.5 * 1.0)


# ---- TiFL ----------------------------------------------------------------------------------------


def test_tiers_are_of_equal_speed_and_profiling_makes_no_version():
    strategy = TiFL(rule=FedAvg(), clients=2, num_tiers=3, interval=100, profiling_s=50.0)
    _, trace, times, _ = run(strategy, [6.0, 1.0, 5.0, 2.0, 4.0, 3.0], rounds=9)
    tiers = [[client_of(node) for node in tier] for tier in strategy.tiers]
    assert tiers == [[1, 3], [5, 4], [2, 0]]
    assert times[0] == 0.0
    assert times[1] - 6.0 in (2.0, 4.0, 6.0)  # after profiling, a round of one tier
    lasted = np.diff(times[1:])
    assert set(np.round(lasted, 6)) <= {2.0, 4.0, 6.0}
    # ceil(9 / 3) credits each, all of them spent
    assert sorted(np.round([times[1] - 6.0, *lasted], 6)) == [2.0] * 3 + [4.0] * 3 + [6.0] * 3
    assert len(clients(trace, Event.DISCARDED)) == 6  # the replies to profiling


def test_clients_that_never_answer_are_in_no_tier():
    strategy = TiFL(rule=FedAvg(), clients=1, num_tiers=2, profiling_rounds=2, profiling_s=3.0)
    run(strategy, [1.0, 2.0, 99.0], rounds=4)
    assert [[client_of(node) for node in tier] for tier in strategy.tiers] == [[0], [1]]


def test_a_client_that_comes_after_profiling_is_timed_and_trained_with_its_tier():
    away = Scripted(4, {3: [20.0]}, offline=[3])
    strategy = TiFL(rule=FedAvg(), clients=1, num_tiers=2, interval=100, credits=99)
    _, trace, times, _ = run(strategy, [1.0, 2.0, 9.0, 1.5], rounds=60, availability=away)
    tiers = [[client_of(node) for node in tier] for tier in strategy.tiers]
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
    strategy = TiFL(rule=FedAvg(), clients=1, num_tiers=2, interval=100)
    _, trace, _, _ = run(strategy, [1.0, 2.0], rounds=20, faults=faults)
    assert [[client_of(node) for node in tier] for tier in strategy.tiers] == [[0], [1]]
    assert set(clients(trace, Event.APPLIED)) == {0, 1}


def test_clients_without_a_tier_are_not_trained_while_the_others_are_away():
    away = Scripted(2, {0: [10.0, 500.0]})
    strategy = TiFL(rule=FedAvg(), clients=1, num_tiers=1, profiling_s=5.0)
    _, trace, times, _ = run(strategy, [1.0, 9.0], rounds=20, availability=away)
    assert set(clients(trace, Event.APPLIED)) == {0}
    assert times[-1] > 500.0


@pytest.mark.parametrize("profiling_s", [100.0, 2e4], ids=["deadline", "timeout"])
def test_without_any_tier_the_run_ends_and_says_so(profiling_s):
    # The timeout of the run is 1e4 s.
    strategy = TiFL(rule=FedAvg(), clients=1, num_tiers=2, profiling_s=profiling_s)
    with pytest.raises(SimulationError, match=r"none of the 2 clients .*profiling_s, .*: raise"):
        run(strategy, [3e4, 4e4], rounds=20)


def test_one_tier_is_plain_averaging():
    strategy = TiFL(rule=FedAvg(), clients=3, num_tiers=1, interval=100)
    _, _, _, models = run(strategy, [1.0, 2.0, 3.0], rounds=2)
    _, _, _, plain = run(Rounds(FedAvg(), clients=3), [1.0, 2.0, 3.0], rounds=2)
    np.testing.assert_allclose(models, plain)


def test_the_least_accurate_tier_becomes_the_most_likely():
    # n = 3 tiers with credits: 3/6, 2/6, 1/6 from the worst to the best.
    assert change_probabilities([0.9, 0.1, 0.5, 0.7], [1, 2, 0, 5]) == [1 / 6, 3 / 6, 0, 2 / 6]
    assert sum(change_probabilities([0.3] * 5, [1] * 5)) == pytest.approx(1.0)
    strategy = TiFL(rule=FedAvg(), clients=1, num_tiers=2, interval=2, credits=50)
    run(strategy, [1.0, 1.1, 5.0, 5.1], rounds=3)
    # Accuracies are i / 100, weighted by i + 1 examples; the fast clients are less accurate.
    assert strategy.accuracy == pytest.approx([0.02 / 3, 0.18 / 7])
    assert strategy.probabilities == [2 / 3, 1 / 3]


# ---- Oort ----------------------------------------------------------------------------------------


class _Server:
    """As much of a server as selection looks at."""

    def __init__(self, version=9):
        self.version = version
        self.model = GlobalModel(ArrayRecord({"w": Array(START)}))
        self.w = self.model.w
        self.now = 0.0


def oort(records, **arguments):
    strategy = Oort(rule=FedAvg(), **{"percentile": 100.0, **arguments})
    strategy.begin(_Server())
    strategy.known = records
    return strategy


def test_scores_are_those_of_the_authors_code():
    records = {1: Record(10.0, 1.0, 4, 1), 2: Record(30.0, 8.0, 9, 1), 3: Record(20.0, 2.0, 1, 1)}
    scores = oort(records, clip=1.0).scores([1, 2, 3], 10, 4.0)
    bonus = [math.sqrt(0.1 * math.log(10) / last) for last in (4, 9, 1)]
    # From 0.999 of the smallest utility to the largest: 9.99 to 30. Client 2 needs twice the
    # preferred time, and alpha is 2.
    expected = [0.01 / 20.01 + bonus[0], (1 + bonus[1]) / 4, 10.01 / 20.01 + bonus[2]]
    np.testing.assert_allclose(scores, expected)


def test_utilities_are_clipped_but_divided_by_the_range_of_what_they_were():
    records = {i: Record(float(u), 1.0, 9, 1) for i, u in enumerate([10, 11, 12, 13, 110])}
    scores = oort(records, clip=0.75).scores(range(5), 1, math.inf)
    # Of five in ascending order, the one at place floor(0.75 * 5) is 13; ln 1 = 0: no bonus.
    np.testing.assert_allclose(scores, np.array([0.01, 1.01, 2.01, 3.01, 3.01]) / 100.01)


def test_the_preferred_time_is_a_percentile_of_the_known_times():
    records = {i: Record(1.0, float(i), 1, 1) for i in range(10)}
    assert oort(records, percentile=30.0).preferred_seconds() == 3.0
    assert oort(records).preferred_seconds() == math.inf


def test_only_never_tried_clients_are_explored_and_the_share_falls():
    records = {i: Record(1.0, 1.0, 1, 1) for i in range(10)}
    strategy = oort(records, epsilon=0.5, decay=0.5, least_epsilon=0.2)
    chosen = strategy.select(_Server(), range(20), 8)
    assert strategy.share == 0.25
    assert len(set(chosen)) == 8
    assert sum(c >= 10 for c in chosen) == 2  # floor(0.25 * 8)
    strategy.select(_Server(), range(20), 8)
    assert strategy.share == 0.2
    assert len(strategy.select(_Server(), range(10), 8)) == 8  # all were tried: none is explored


def test_exploitation_takes_the_best():
    records = {i: Record(float(i), 1.0, 5, 1) for i in range(20)}
    strategy = oort(records, clip=1.0, cut_off=1.0, epsilon=0.0, least_epsilon=0.0)
    assert sorted(strategy.select(_Server(), range(20), 5)) == [15, 16, 17, 18, 19]


def test_equal_utilities_without_penalty_are_drawn_uniformly():
    records = {i: Record(1.0, float(i + 1), 5, 1) for i in range(8)}
    strategy = oort(records, alpha=0.0, percentile=10.0, epsilon=0.0, least_epsilon=0.0)
    counts = np.zeros(8)
    for version in range(400):
        counts[strategy.select(_Server(version), range(8), 2)] += 1
    assert counts.sum() == 800
    np.testing.assert_allclose(counts, 100, atol=4 * math.sqrt(400 * 0.25 * 0.75))


def test_the_pacer_relaxes_when_utility_is_flat_and_tightens_after_a_jump():
    strategy = oort({}, percentile=30.0, pacer_step=2, pacer_delta=5.0)
    for utilities, limit in (([1, 1, 1, 1], 35), ([1, 1, 2, 2], 30), ([1, 1, 6, 6], 25)):
        strategy.limit = 30.0
        strategy.utilities = utilities
        strategy.pace(4)
        assert strategy.limit == limit
    strategy.pace(5)
    assert strategy.limit == 25


def test_oort_learns_utilities_and_times_from_replies():
    strategy = Oort(rule=FedAvg(), clients=2, over_selection=2.0)
    run(strategy, [1.0, 2.0, 3.0, 4.0])
    first, late = strategy.known[node_id(1)], strategy.known[node_id(3)]
    assert (first.utility, first.seconds, first.last_round, first.times) == (2.0, 2.0, 1, 1)
    assert (late.utility, late.seconds) == (None, 2.0)  # it took at least so long


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rounds(FedAvg(), clients=0), "clients is 0"),
        (lambda: Rounds(FedAvg(), over_selection=0.9), "over_selection is 0.9"),
        (lambda: Rounds(FedAvg(), deadline_s=0.0), "deadline_s is 0"),
        (lambda: Rounds(FedAvg(), min_fraction=1.5), "min_fraction is 1.5"),
        (lambda: Rounds(FedAvg(eta=0.0)), "eta is 0"),
        (lambda: Rounds(FedAvg), "rule is <class .*FedAvg'>; it must be a fl.strategies.RoundRule"),
        (lambda: Rounds(FedAvg(), fraction_train=1.5), "fraction_train is 1.5"),
        (lambda: Rounds(FedAvg(), min_train_nodes=-1), "min_train_nodes is -1"),
        (lambda: TiFL(rule=FedAvg(), num_tiers=0), "num_tiers is 0"),
        (lambda: TiFL(rule=FedAvg(), profiling_s=-1.0), "profiling_s is -1"),
        (lambda: Oort(rule=FedAvg(), epsilon=2.0), "epsilon is 2.0; it must lie between 0 and 1"),
        (lambda: Oort(rule=FedAvg(), window=0.5), "window is 0.5"),
        (lambda: run(Oort(rule=FedAvg(), loss_key="loss"), 12), "reports no 'loss'"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
