"""Whom a round asks and when it ends: over-selection, deadlines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scripted_rounds import START, answer, clients, run
from stand_ins import Scripted

from fl.aggregation import Median
from fl.errors import ConfigError
from fl.selection import Choice, Selection
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.simulation.world.slowdowns import ShiftedExponential
from fl.strategies import FedAdam, FedAvg, FedAvgM, FedYogi, QFedAvg, Rounds
from fl.strategies.round_rule import Updates

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
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@dataclass(frozen=True)
class Heavy(Selection):
    """Everybody trains; the last counts like all others together."""

    def select(self, state, opening):
        chosen = sorted(opening.idle)
        return Choice(chosen, [1.0] * (len(chosen) - 1) + [len(chosen) - 1.0]), state


def test_weights_of_a_selection_count_for_rules_that_weigh_clients_alike():
    # Client i moves the model by i: the mean of 0, 1, 2 is 1, and with weights 1, 1, 2 it is 5 / 4.
    for selection, mean in ((None, 1.0), (Heavy(), 1.25)):
        strategy = Rounds(QFedAvg(q=0.0), clients=3, selection=selection)
        _, _, _, models = run(strategy, [1.0] * 3)
        assert models[-1] == pytest.approx([mean, mean])


def test_who_has_no_examples_has_no_vote_in_an_aggregator():
    def empty_but_the_last_three(request):
        result = answer(request)
        metrics = result.content["metrics"]
        metrics["num-examples"] = int(request.client >= 4)
        return result

    strategy = Rounds(FedAvg(), clients=7, aggregator=Median())
    _, _, _, models = run(strategy, [1.0] * 7, answer=empty_but_the_last_three)
    assert models[-1] == pytest.approx([5.0, 5.0])  # of 4, 5, 6
