"""FedHyper (arXiv:2310.03156), its three schedulers, server and clients together."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from every_strategy import CLIENTS, ROUNDS, ran
from flwr.app import ArrayRecord
from heterogeneous import DIM, Batch, Learnt, Losses, N, cohorts
from torch import nn

from fl import simulate
from fl.clients import Corrected, Hypergradient, Received, Sgd, TrainingApp
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError
from fl.simulation.world.fleets import uniform
from fl.strategies import Exchange, FedAvg, FedHyperCL, FedHyperG, FedHyperSL, Rounds
from fl.strategies.round_rule import Updates
from fl.vectors.layout import Layout

LR, K = 0.02, 5
part_and_all = pytest.mark.parametrize("clients", [2, N], ids=["2 of 8", "all"])
SCHEDULERS = {
    "G": (FedHyperG(3.0), Sgd(LR)),
    "SL": (FedHyperSL(1.0, 10.0, LR), Sgd(7.0)),
    "G, SL": (FedHyperSL(2.0, 4.0, LR), Sgd(7.0)),
    "CL": (FedHyperCL(1.0), Corrected(Sgd(LR), Hypergradient(10.0))),
    "G, CL": (FedHyperCL(3.0), Corrected(Sgd(LR), Hypergradient(1.5))),
}


class Scaled(Losses):
    """Fixture Q with losses so small that the rates do not reach their bounds at once."""

    def __init__(self) -> None:
        super().__init__()
        self.c *= 0.3
        self.optimum *= 0.3


def written_out(name, asked, losses):
    """Models by the rules' recursions, in float64."""
    server, client = SCHEDULERS[name]
    gamma_a = server.gamma_a
    gamma_b = getattr(server, "gamma_b", None) or (
        client.correction.gamma_b if "CL" in name else 1.0
    )
    x, last, alpha, told = np.zeros(DIM), np.zeros(DIM), 1.0, LR
    models = [x]
    for cohort in asked:
        ends = []
        weights = 1.0 + np.array(cohort)
        for i in cohort:
            y, beta, before = x, told, None
            for _ in range(K):
                g = losses.gradient(i, y)
                if "CL" in name and before is not None:
                    beta += g @ before + g @ -last / K
                    beta = min(max(beta, LR / gamma_b), LR * gamma_b)
                y, before = y - beta * g, g
            ends.append(y)
        delta = np.average(ends, axis=0, weights=weights) - x
        alpha = min(max(alpha + delta @ last, 1 / gamma_a), gamma_a)
        if "SL" in name:
            told = min(max(told + delta @ last, LR / gamma_b), LR * gamma_b)
        x, last = x + alpha * delta, delta
        models.append(x)
    return np.array(models)


@part_and_all
@pytest.mark.parametrize("losses", [Losses(), Scaled()], ids=["at bounds", "between"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_is_its_recursion(name, losses, clients):
    asked = cohorts(clients, 50)
    learnt = Learnt(*SCHEDULERS[name], asked, steps=K, losses=losses)
    expected = written_out(name, asked, losses)
    np.testing.assert_allclose(learnt.models, expected, rtol=1e-4, atol=2e-4)
    fixed = Learnt(FedAvg(), Sgd(LR), asked, steps=K, losses=losses)
    assert np.abs(expected - fixed.models).max() > 1e-2  # it is not FedAvg


@part_and_all
@pytest.mark.parametrize(
    ("server", "client"),
    [
        (FedHyperG(1.0), Sgd(LR)),
        (FedHyperSL(1.0, 1.0, LR), Sgd(7.0)),
        (FedHyperCL(1.0), Corrected(Sgd(LR), Hypergradient(1.0))),
    ],
    ids=["G", "SL", "CL"],
)
def test_with_bounds_of_1_it_is_fedavg_bit_for_bit(server, client, clients):
    asked = cohorts(clients, 20)
    got, expected = (Learnt(*each, asked) for each in ((server, client), (FedAvg(), Sgd(LR))))
    np.testing.assert_array_equal(got.models, expected.models)


def rates(deltas, rule=None):
    """The global rate after each round in which one client changes the model so."""
    rule = rule or FedHyperG(3.0)
    state = rule.init(np.zeros(DIM, np.float32), DIM)
    seen = []
    for delta in deltas:
        before = state
        state = rule.step(state, Updates(np.float32(delta)[None], np.ones(1)))
        np.testing.assert_allclose(
            state.w - before.w, state.alpha * np.float32(delta), rtol=1e-5, atol=1e-6
        )
        seen.append(state.alpha)
    return np.array(seen)


U = np.array([0.3, -0.1, 0.2, 0.0, 0.1])


def test_the_first_round_is_that_of_fedavg():
    assert rates([10 * U]) == 1.0


def test_in_a_constant_direction_the_rate_rises_by_its_square_to_the_bound():
    t = np.arange(20)
    np.testing.assert_allclose(rates([U] * 20), np.minimum(3.0, 1 + t * (U @ U)), rtol=1e-6)


def test_with_a_change_of_sign_in_every_round_the_rate_falls_to_the_inverse_of_the_bound():
    t = np.arange(20)
    expected = np.maximum(1 / 3, 1 - t * (U @ U))
    np.testing.assert_allclose(rates([U, -U] * 10), expected, rtol=1e-6)


def test_orthogonal_changes_leave_the_rate():
    v = np.array([0.1, 0.3, 0.0, 9.0, 0.0])
    assert abs(U @ v) < 1e-12
    np.testing.assert_allclose(rates([U, v, U, v]), 1.0, atol=1e-6)


def test_twice_the_change_moves_the_rate_four_times_as_much():
    steps = [rates([a * U, a * U])[1] - 1 for a in (1.0, 2.0)]
    assert steps[1] == pytest.approx(4 * steps[0], rel=1e-5)


def test_of_one_client_on_a_parabola_the_product_is_eta_a_squared_x_x():
    a, eta, x, alpha = 1.5, 0.1, 2.0, 1.0
    rule = FedHyperG(3.0)
    state, last = rule.init(np.float32([x]), 1), None
    for _ in range(10):
        state = rule.step(state, Updates(-np.float32(eta * a) * state.w[None], np.ones(1)))
        alpha = min(3.0, alpha + (0 if last is None else eta**2 * a**2 * x * last))
        x, last = x * (1 - alpha * eta * a), x
        assert state.alpha == pytest.approx(alpha, rel=1e-5)
        assert state.w[0] == pytest.approx(x, rel=1e-5)


def test_the_product_is_that_of_what_clients_train():
    # Of three numbers the second is a buffer.
    deltas, places = np.float32([[0.5, 100.0, 0.5]]), [slice(0, 1), slice(2, 3)]
    for rule in (FedHyperG(), FedHyperSL(3.0), FedHyperCL(3.0)):
        state = rule.init(np.zeros(3, np.float32), 2)
        for _ in range(2):
            state = rule.step(state, Updates(deltas, np.ones(1), trained=places))
        assert state.alpha == pytest.approx(1.5)


def test_clients_are_told_the_rate_of_the_server_and_sent_its_last_change():
    rule = FedHyperSL(1.0, 2.0, 0.1)
    state = rule.init(np.zeros(DIM, np.float32), DIM)
    told = []
    for _ in range(4):
        configs = rule.configs(state, 1, 3, np.random.default_rng(0))
        assert len(configs) == 3
        told.append(configs[0]["lr"])
        state = rule.step(state, Updates(np.float32(U)[None], np.ones(1)))
    # After the first round there is nothing to compare with; 0.15 more is beyond the bound of 0.2.
    np.testing.assert_allclose(told, [0.1, 0.1, 0.2, 0.2])
    rule = FedHyperCL()
    state = rule.init(np.zeros(DIM, np.float32), DIM)
    assert not rule.broadcast(state)["last_update"].any()
    state = rule.step(state, Updates(np.float32(U)[None], np.ones(1)))
    np.testing.assert_allclose(rule.broadcast(state)["last_update"], U, rtol=1e-6)


def test_clients_that_go_against_the_server_slow_down():
    losses, w = Scaled(), torch.zeros(DIM)
    rule = Corrected(Sgd(LR), Hypergradient(1e6))
    g, _ = Batch(losses, 0).grad(w)
    ends = []
    for way in (-1, 0, 1):  # as the client's gradient would have it, nowhere, and backwards
        received = Received(w, {"last_update": way * g}, {}, rule.scalars({}), 2)
        v, state = w, rule.init(received)
        for t in range(2):
            v, state, _ = rule.step(v, state, received, Batch(losses, 0), t)
        ends.append(float((v - w).norm()))
    assert ends[0] > ends[1] > ends[2]


def test_only_the_clients_own_schedule_needs_a_second_vector_down_and_none_does_up():
    experiment, fedavg = ran("fedavg", "client.rule.lr=0.1")
    d = experiment.app.layout.size
    for name, vectors in (("fedhyper_g", 0), ("fedhyper_sl", 0), ("fedhyper_cl", 1)):
        totals = ran(name)[1].summary["totals"]
        sent = (totals["bytes_down"] - fedavg.summary["totals"]["bytes_down"]) / (CLIENTS * ROUNDS)
        assert 4 * d * vectors <= sent <= 4 * d * vectors + 160  # and its name, or that of the rate
        assert totals["bytes_up"] == fedavg.summary["totals"]["bytes_up"]


@pytest.mark.parametrize("large", [False, True])
def test_statistics_of_normalisation_are_no_part_of_the_product_however_large_the_model(
    large, monkeypatch
):
    if large:  # models are added up as they come
        monkeypatch.setattr("fl.vectors.layout.LARGE_BYTES", 0)
    data = federate(load_digits, partial(partition.iid, num_partitions=4, seed=0))

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

    layout = Layout.of(model())
    strategy = Rounds(FedHyperCL(3.0), min_train_nodes=4).within(Exchange(layout=layout))
    app = TrainingApp(model, data, Sgd(0.1), correction=Hypergradient(), batch_size=64)
    seen = []

    def server(grid, context, recorder):
        initial = ArrayRecord(model().state_dict())
        strategy.start(grid, initial, num_rounds=2, evaluate_fn=lambda r, a: seen.append(a))

    run = simulate(server, app, uniform(4, seed=0), executor="serial", progress=False)
    assert run.trace.faults() == {}
    rows = [layout.flatten({n: torch.from_numpy(v.numpy()) for n, v in a.items()}) for a in seen]
    trained = [layout.select(row).double() for row in rows]
    first, second = trained[1] - trained[0], trained[2] - trained[1]
    assert strategy.state.delta.shape == first.shape
    alpha = strategy.state.alpha
    assert 1 < alpha < 3
    assert alpha == pytest.approx(1 + float(first @ second) / alpha, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (lambda: FedHyperG(0.5), "gamma_a", "0.5"),
        (lambda: FedHyperG(float("inf")), "gamma_a", "inf"),
        (lambda: FedHyperSL(gamma_b=0.9), "gamma_b", "0.9"),
        (lambda: FedHyperSL(lr=0.0), "lr", "0.0"),
        (lambda: FedHyperCL(float("nan")), "gamma_a", "nan"),
        (lambda: Hypergradient(0.0), "gamma_b", "0.0"),
    ],
)
def test_what_is_out_of_range_is_refused(make, key, value):
    with pytest.raises(ConfigError) as caught:
        make()
    assert key in str(caught.value)
    assert value in str(caught.value)
