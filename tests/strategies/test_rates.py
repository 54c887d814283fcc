"""Rates of server and clients that change from round to round, and with the number of clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from scripted_rounds import run

from fl.clients import Corrected, CosineDecay, Gradient, Proximal, Sgd, StepDecay, Warmup
from fl.clients.app.home import Home
from fl.clients.app.inbox import Inbox
from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.simulation.world.faults import Faults
from fl.strategies import FedAvg, FedAvgM, LinearScaling, QFedAvg, Rounds

# ---- factors -------------------------------------------------------------------------------------


def test_the_rate_rises_to_k_times_its_value_along_a_line_and_then_follows_the_schedule():
    rate = LinearScaling(cohort=4, warmup=5, then=StepDecay(every=2, gamma=0.5))
    assert [rate.factor(t, 12) for t in range(9)] == pytest.approx(
        [1.4, 1.8, 2.2, 2.6, 3.0, 3.0, 3.0, 1.5, 1.5]
    )


@pytest.mark.parametrize("warmup", [0, 3])
def test_with_as_many_clients_as_the_rate_is_for_nothing_changes(warmup):
    rate = LinearScaling(cohort=7, warmup=warmup)
    assert [rate.factor(t, 7) for t in range(6)] == [1.0] * 6


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"cohort": 0}, "cohort is 0"),
        ({"cohort": 1, "warmup": -1}, "warmup is -1"),
        ({"cohort": 1, "then": 0.5}, "then is 0.5"),
    ],
)
def test_what_is_no_scaling_is_refused(arguments, key):
    with pytest.raises(ConfigError, match=key):
        LinearScaling(**arguments)


# ---- in rounds -----------------------------------------------------------------------------------

LR = 0.5  # of clients that begin at 0


def descending(told, shards=None):
    """Clients that do a step of gradient descent on |w - c|^2 / 2, c the mean of their shard."""
    shards = np.arange(6.0).reshape(6, 1) if shards is None else shards

    def answer(request):
        content = request.payload.content
        factor = content["config"].get("lr-factor", 1.0)
        told.setdefault(content["config"]["server-round"], set()).add(factor)
        w = content["arrays"]["w"].numpy()
        w = w - LR * factor * (w - shards[request.client].mean())
        metrics = {"num-examples": shards.shape[1], "train-loss": 0.0, "steps": 1}
        arrays = ArrayRecord({"w": Array(w.astype(np.float32))})
        return Result(content=RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}))

    return answer


def models_of(strategy, rounds=4, **more):
    told = {}
    *_, models = run(strategy, [1.0] * 6, rounds=rounds, answer=descending(told), **more)
    return np.array(models)[:, 0], told


def test_the_servers_rate_follows_its_schedule():
    fixed = [models_of(Rounds(FedAvg(eta=0.5 * f), clients=6), 1)[0][1] for f in (1.0, 0.1)]
    models, told = models_of(
        Rounds(FedAvg(eta=0.5), clients=6, eta_schedule=StepDecay(every=1, gamma=0.1)), 2
    )
    assert models[1] == pytest.approx(fixed[0])
    # The second round's mean change is half the distance to 2.5.
    assert models[2] == pytest.approx(models[1] + 0.05 * 0.5 * (2.5 - models[1]))
    assert told == {1: {1.0}, 2: {1.0}}


@pytest.mark.parametrize("clients", [2, 3, 6])
def test_clients_are_told_the_factor_for_as_many_as_the_round_waits_for(clients):
    strategy = Rounds(
        FedAvg(),
        clients=clients,
        over_selection=6 / clients,
        lr_schedule=LinearScaling(cohort=2, warmup=2),
    )
    _, told = models_of(strategy)
    k = clients / 2
    assert told == {1: {(1 + k) / 2}, 2: {k}, 3: {k}, 4: {k}}


def test_at_one_step_k_times_as_many_clients_at_k_times_the_rate_are_one_large_batch():
    rng = np.random.default_rng(0)
    shards = rng.standard_normal((6, 5))
    told = {}
    strategy = Rounds(FedAvg(), clients=6, lr_schedule=LinearScaling(cohort=3))
    *_, models = run(strategy, [1.0] * 6, rounds=1, answer=descending(told, shards))
    # Of a quadratic the gradient of all 30 examples is at 0 minus their mean.
    assert models[1][0] == pytest.approx(2 * LR * shards.mean(), rel=1e-6)


def test_momentum_that_has_the_clients_rate_in_it_is_corrected_where_the_rate_changes():
    schedule = StepDecay(every=2, gamma=0.25)
    models, _ = models_of(Rounds(FedAvgM(beta=0.5), clients=6, lr_schedule=schedule))
    w, v = 0.0, 0.0  # v <- beta v + g, w <- w - lr v: the rate is outside
    for t in range(4):
        v = 0.5 * v + (w - 2.5)
        w = w - LR * schedule(t) * v
        assert models[t + 1] == pytest.approx(w, rel=1e-5)


def test_a_rate_of_the_server_is_outside_of_its_momentum():
    schedule = StepDecay(every=1, gamma=0.5)
    models, _ = models_of(Rounds(FedAvgM(beta=0.5), clients=6, eta_schedule=schedule))
    w, v = 0.0, 0.0
    for t in range(4):
        v = 0.5 * v + LR * (2.5 - w)
        w = w + schedule(t) * v
        assert models[t + 1] == pytest.approx(w, rel=1e-5)


def test_schedules_of_ones_change_no_bit_also_where_clients_fail():
    faults = Faults(dropout=0.3)
    plain = run(Rounds(FedAvgM(), clients=4), [1.0] * 6, rounds=6, faults=faults)[3]
    ones = Rounds(
        FedAvgM(), clients=4, eta_schedule=lambda t: 1.0, lr_schedule=LinearScaling(cohort=4)
    )
    np.testing.assert_array_equal(run(ones, [1.0] * 6, rounds=6, faults=faults)[3], plain)


@pytest.mark.parametrize("name", ["eta_schedule", "lr_schedule"])
def test_a_rate_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is 0.5"):
        Rounds(FedAvg(), **{name: 0.5})
    # At the end of its period a cosine without a floor is 0; that is seen before the first round.
    for period, works in ((4, False), (5, True)):
        strategy = Rounds(FedAvg(), clients=6, **{name: CosineDecay(period=period)})
        told = {}
        if works:
            run(strategy, [1.0] * 6, rounds=5, answer=descending(told))
            continue
        with pytest.raises(ConfigError, match=f"{name} is 0 in round 5"):
            run(strategy, [1.0] * 6, rounds=5, answer=descending(told))
        assert told == {}


def test_the_record_has_the_rates_of_every_round():
    seen = []
    strategy = Rounds(
        FedAvg(eta=0.5),
        clients=6,
        eta_schedule=StepDecay(every=1, gamma=0.1),
        lr_schedule=LinearScaling(cohort=2, warmup=2),
    )
    models_of(strategy, 3, measured=seen.append)
    assert [one["eta"] for one in seen] == pytest.approx([0.5, 0.05, 0.005])
    assert [one["lr_factor"] for one in seen] == [2.0, 3.0, 3.0]


def test_a_rule_without_a_rate_cannot_have_a_schedule_for_it():
    assert not hasattr(QFedAvg(), "eta")
    with pytest.raises(ConfigError, match=r"eta_schedule.*QFedAvg"):
        Rounds(QFedAvg(), eta_schedule=Warmup(3))


# ---- clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Sgd(0.2), Corrected(Sgd(0.2), Proximal(0.1))], ids=str)
def test_a_factor_multiplies_whatever_rate_the_task_has(rule):
    assert rule.scalars({"lr-factor": 3.0})["lr"] == pytest.approx(0.6)
    assert rule.scalars({"lr-factor": 3.0, "lr": 0.01})["lr"] == pytest.approx(0.03)


def test_a_factor_multiplies_the_clients_own_schedule():
    rule = Sgd(0.2, round_schedule=StepDecay(every=1, gamma=0.5))
    assert rule.scalars({"server-round": 3, "lr-factor": 4.0})["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("factor", [0.0, -1.0, "2", float("nan")])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(ConfigError, match="lr-factor"):
        Sgd(0.2).scalars({"lr-factor": factor})


def test_clients_without_a_rate_refuse_a_factor():
    inbox = Inbox(Home(torch.nn.Linear(2, 2)), Gradient(), "Gradient")
    with pytest.raises(ConfigError, match="Gradient"):
        inbox.scalars({"lr-factor": 2.0})
