"""Power-of-choice: candidates by size, of these the largest losses, and what asking them costs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict
from scripted_rounds import answer, clients, run

from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.randomness import generator
from fl.selection import Opening, PowerOfChoice, Reply, RoundEnd
from fl.selection.power_of_choice import Losses
from fl.selection.sizes import Sizes
from fl.simulation.kernel.trace import Event
from fl.strategies import FedAvg, Rounds


def opening(n, m, server_round=1):
    return Opening(server_round, range(n), range(n), m, partial(generator, server_round))


def chosen(rule, state, losses, m, server_round=1):
    """Returns whom a rule selects if these are the losses, by client."""
    at = opening(len(state.sizes.of), m, server_round)
    ask, state = rule.ask(state, at)
    answers = {i: {"loss": losses[i]} for i in ask.clients if losses[i] is not None}
    usable = {i: a for i, a in answers.items() if rule.refuses(ask, a) is None}
    state = rule.told(state, ask, usable)
    assert rule.ask(state, at)[0] is None
    choice, state = rule.select(state, at)
    return list(choice.clients), state


def known(*sizes):
    return Losses(Sizes(dict(enumerate(map(float, sizes)))))


def test_all_clients_as_candidates_give_the_largest_losses():
    clients, state = chosen(PowerOfChoice(candidates=6), known(*[1] * 6), [3, 1, 5, 2, 9, 4], 3)
    assert clients == [4, 2, 5]
    assert sorted(state.candidates) == list(range(6))


def test_as_many_candidates_as_trained_are_drawn_by_size():
    # Without replacement, client 0 of two first draws: 1/2 + 1/4 1/3 2 + ... by enumeration.
    sizes, rounds = [4, 2, 1, 1], 4000
    p = np.array(sizes) / 8
    counts = np.zeros(4)
    for t in range(1, rounds + 1):
        clients, _ = chosen(PowerOfChoice(candidates=2), known(*sizes), [0] * 4, 2, t)
        counts[clients] += 1
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    np.testing.assert_allclose(counts / rounds, expected, atol=4 * 0.5 / np.sqrt(rounds))


def test_equal_losses_are_broken_at_random():
    counts = np.zeros(5)
    for t in range(1, 1001):
        clients, _ = chosen(PowerOfChoice(candidates=5), known(*[1] * 5), [7] * 5, 1, t)
        counts[clients] += 1
    np.testing.assert_allclose(counts, 200, atol=4 * np.sqrt(1000 * 0.2 * 0.8))


def test_more_candidates_prefer_large_losses_more():
    # The expected rank of the best of d of 10 clients drawn uniformly is d 11 / (d + 1).
    means = []
    for d in (1, 3, 9):
        picks = [
            chosen(PowerOfChoice(candidates=d), known(*[1] * 10), range(1, 11), 1, t)[0][0] + 1
            for t in range(1, 601)
        ]
        means.append(np.mean(picks))
        assert np.mean(picks) == pytest.approx(d * 11 / (d + 1), abs=4 * np.std(picks) / 24)
    assert means == sorted(means)


@pytest.mark.parametrize("silent", [None, float("nan"), float("inf"), "9", True])
def test_a_candidate_without_a_loss_does_not_train(silent):
    clients, _ = chosen(PowerOfChoice(candidates=4), known(1, 1, 1, 1), [1, 2, silent, 3], 3)
    assert sorted(clients) == [0, 1, 3]


def test_who_claims_any_loss_takes_one_place_and_changes_nobody_elses():
    honest = [1.0, 5.0, 4.0, 3.0, 2.0, 6.0]
    rule, state = PowerOfChoice(candidates=6), known(*[1] * 6)
    truly, _ = chosen(rule, state, honest, 3)
    falsely, _ = chosen(rule, state, [1e300, *honest[1:]], 3)
    assert truly == [5, 1, 2]
    assert falsely == [0, 5, 1]


def test_nobody_who_answers_leaves_the_round_empty():
    assert chosen(PowerOfChoice(candidates=4), known(1, 1, 1), [None] * 3, 2)[0] == []


def test_the_query_free_variant_takes_reported_losses_and_asks_nobody():
    rule = PowerOfChoice(candidates=4, variant="rpow-d")
    at = opening(4, 2)
    ask, state = rule.ask(known(1, 1, 1, 1), at)
    assert ask is None
    replies = [
        Reply(i, 1.0, 1.0, {"train-loss": loss}) for i, loss in ((0, 3.0), (2, 5.0), (3, 4.0))
    ]
    state = rule.learn(state, RoundEnd(1, replies))
    choice, _ = rule.select(state, at)
    assert list(choice.clients) == [1, 2]  # who has never trained comes first
    assert rule.reads == ("train-loss",)


def test_a_batch_of_examples_is_asked_for_by_the_cheap_variant():
    asked = {}
    for variant in ("pow-d", "cpow-d"):
        rule = PowerOfChoice(candidates=3, variant=variant, batch=64)
        asked[variant], _ = rule.ask(known(1, 1, 1), opening(3, 2))
    assert asked["pow-d"].config == {"evaluate-on": "train"}
    assert asked["cpow-d"].config == {"evaluate-on": "train", "evaluate-examples": 64}


# ---- on a grid -----------------------------------------------------------------------------------


def test_candidates_cost_a_download_and_their_time_before_the_round_begins():
    # Losses are i; every evaluation and every training of client i takes i + 1 s.
    strategy = Rounds(FedAvg(), selection=PowerOfChoice(candidates=4), clients=2)
    grid, trace, times, models = run(strategy, [1.0, 2.0, 3.0, 4.0])
    assert sorted(clients(trace, Event.APPLIED)) == [2, 3]
    assert models[1] == pytest.approx((2 + 3) / 2)  # the plain mean, whatever their examples
    # The query and the evaluation each wait for the slowest candidate, and so does the round.
    assert times[1] == 12.0
    sent = [n for kind, n in zip(trace.kind, trace.bytes, strict=True) if kind == Event.DISPATCH]
    query, model = min(sent), max(sent)
    assert grid.engine.bytes_down == pytest.approx(4 * query + 6 * model, rel=0.05)


def test_a_candidate_that_is_too_slow_is_not_waited_for():
    selection = PowerOfChoice(candidates=4, within_s=3.5)
    _, trace, times, _ = run(Rounds(FedAvg(), selection=selection, clients=2), [1.0, 2.0, 3.0, 4.0])
    # Client 3 does not even say how much it has.
    assert sorted(clients(trace, Event.APPLIED)) == [1, 2]
    assert times[1] == 3.5 + 3.0 + 3.0


def test_a_lying_answer_is_left_out_and_is_an_event():
    def lying(request):
        outcome = answer(request)
        if request.client == 3 and request.message_type == "evaluate":
            metrics = MetricRecord({"num-examples": 4, "loss": float("nan")})
            return Result(content=RecordDict({"metrics": metrics}))
        return outcome

    strategy = Rounds(FedAvg(), selection=PowerOfChoice(candidates=4), clients=2)
    _, trace, _, _ = run(strategy, [1.0] * 4, answer=lying)
    assert sorted(clients(trace, Event.APPLIED)) == [1, 2]
    assert clients(trace, Event.REJECTED) == [3]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: PowerOfChoice(candidates=0), "candidates is 0"),
        (lambda: PowerOfChoice(variant="pow"), "variant is 'pow'"),
        (lambda: PowerOfChoice(batch=0), "batch is 0"),
        (
            lambda: Rounds(
                FedAvg(), selection=PowerOfChoice(candidates=9), clients=10
            ).check_clients(100),
            "selection.candidates is 9; it must be at least 10",
        ),
        (
            lambda: run(
                Rounds(FedAvg(), selection=PowerOfChoice(candidates=3), fraction_train=1.0), 8
            ),
            "selection.candidates is 3; it must be at least 8",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
