"""FedAvg-M, SCAFFOLD-M and their variants with variance reduction (arXiv:2306.16504)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from heterogeneous import DIM, Learnt, Losses, N, cohorts

from fl.clients import (
    ControlledMomentum,
    ControlVariates,
    Corrected,
    GlobalMomentum,
    Sgd,
)
from fl.errors import ConfigError
from fl.strategies import SCAFFOLD, FedAvg, FedAvgMomentum, SCAFFOLDMomentum
from fl.strategies.round_rule import Updates

LR, K, BETA = 0.02, 5, 0.3
METHODS = {
    "FedAvg-M": (FedAvgMomentum, GlobalMomentum()),
    "FedAvg-M-VR": (FedAvgMomentum, GlobalMomentum(variance_reduction=True)),
    "SCAFFOLD-M": (SCAFFOLDMomentum, ControlledMomentum()),
    "SCAFFOLD-M-VR": (SCAFFOLDMomentum, ControlledMomentum(variance_reduction=True)),
}
every_method = pytest.mark.parametrize("name", METHODS)
part_and_all = pytest.mark.parametrize("clients", [2, N], ids=["2 of 8", "all"])


def learn(name, asked, *, beta=BETA, eta=1.0, lr=LR, steps=K):
    kind, correction = METHODS[name]
    more = {"num_clients": N} if kind is SCAFFOLDMomentum else {}
    rule = kind(beta, lr, eta, **more)
    return Learnt(rule, Corrected(Sgd(lr), correction), asked, steps=steps)


class Equal(FedAvg):
    """FedAvg of clients that weigh the same."""

    def step(self, state, updates):
        return super().step(state, updates.unweighted())


def written_out(name, asked, eta=1.0):
    """Models by the paper's recursions, in float64, with all its vectors."""
    losses, (x, last), g = Losses(), np.zeros((2, DIM)), np.zeros(DIM)
    c, c_i, models = np.zeros(DIM), np.zeros((N, DIM)), [np.zeros(DIM)]
    gamma = eta * LR * K
    for cohort in asked:
        y, change = np.tile(x, (N, 1)), np.zeros(DIM)
        for i in cohort:
            seen = []
            for _ in range(K):
                here, there = losses.gradient(i, y[i]), losses.gradient(i, last)
                seen.append(here)
                u = {
                    "FedAvg-M": BETA * here + (1 - BETA) * g,
                    "FedAvg-M-VR": here + (1 - BETA) * (g - there),
                    "SCAFFOLD-M": BETA * (here - c_i[i] + c) + (1 - BETA) * g,
                    "SCAFFOLD-M-VR": here - BETA * (c_i[i] - c) + (1 - BETA) * (g - there),
                }[name]
                y[i] = y[i] - LR * u
            change += np.mean(seen, axis=0) - c_i[i]
            c_i[i] = np.mean(seen, axis=0)
        c = c + change / N
        g = (x - y[cohort].mean(axis=0)) / (LR * K)
        x, last = x - gamma * g, x
        models.append(x)
    return np.array(models)


@every_method
@part_and_all
@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_each_is_the_papers_recursion(name, clients, eta):
    asked = cohorts(clients, 50)
    learnt = learn(name, asked, eta=eta)
    np.testing.assert_allclose(learnt.models, written_out(name, asked, eta), rtol=1e-4, atol=2e-4)


@every_method
@part_and_all
def test_without_mixing_they_are_fedavg_and_scaffold(name, clients):
    asked = cohorts(clients, 20)
    if "SCAFFOLD" in name:
        client = Corrected(Sgd(LR), ControlVariates())
        expected = Learnt(SCAFFOLD(N), client, asked, steps=K)
    else:
        expected = Learnt(Equal(), Sgd(LR), asked, steps=K)
    got = learn(name, asked, beta=1.0)
    np.testing.assert_allclose(got.models, expected.models, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_bias_of_fedavg_m_shrinks_with_beta_and_with_variance_reduction_does_not():
    asked = cohorts(N, 600)
    biases = [learn("FedAvg-M", asked, beta=beta).error for beta in (1.0, 0.3, 0.1)]
    assert biases[0] > 5e-3
    np.testing.assert_allclose(np.divide(biases[1:], biases[0]), [0.3, 0.1], rtol=0.1)
    reduced = learn("FedAvg-M-VR", asked, beta=0.3).error
    assert reduced == pytest.approx(biases[0], rel=0.05)


@pytest.mark.parametrize("name", ["SCAFFOLD-M", "SCAFFOLD-M-VR"])
@pytest.mark.parametrize(("clients", "rounds"), [(2, 600), (N, 300)], ids=["2 of 8", "all"])
def test_with_control_variates_they_find_the_optimum(name, clients, rounds):
    learnt = learn(name, cohorts(clients, rounds))
    assert learnt.error < 2e-4
    c_i = [learnt.losses.gradient(i, learnt.losses.optimum) for i in range(N)]
    np.testing.assert_allclose(learnt.kept("c_i"), c_i, atol=1e-2)


def test_of_few_clients_fedavg_m_finds_no_point():
    learnt = learn("FedAvg-M", cohorts(2, 300))
    assert min(learnt.losses.error(model) for model in learnt.models[-50:]) > 1e-2


@part_and_all
def test_after_every_round_c_is_the_mean_of_all_clients_c_i(clients):
    asked = cohorts(clients, 6)
    for rounds in range(1, 7):
        learnt = learn("SCAFFOLD-M", asked[:rounds])
        np.testing.assert_allclose(
            learnt.states[-1].c, learnt.kept("c_i").mean(axis=0), rtol=1e-4, atol=1e-5
        )


def test_the_direction_is_that_of_what_clients_train():
    # Of five numbers the second is a buffer: g has four, and the model all five.
    rule = FedAvgMomentum(0.1, lr=0.5)
    deltas = np.array([[1.0, 9.0, 2.0, 3.0, 4.0], [3.0, 7.0, 2.0, 1.0, 0.0]], np.float32)
    metrics = [{"steps": 4}, {"steps": 4}]
    places = [slice(0, 1), slice(2, 5)]
    updates = Updates(deltas, np.array([5.0, 1.0]), metrics, trained=places)
    state = rule.step(rule.init(np.zeros(5, np.float32), 4), updates)
    np.testing.assert_allclose(state.w, [2, 8, 2, 2, 2])
    np.testing.assert_allclose(state.g, np.array([2, 2, 2, 2]) / -(0.5 * 4))
    assert state.length == 2.0
    np.testing.assert_allclose(rule.broadcast(state)["momentum"], state.g)


def test_variance_reduction_costs_a_second_gradient():
    assert [c.gradients_per_step for _, c in METHODS.values()] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (lambda: FedAvgMomentum(0.0), "beta", "0.0"),
        (lambda: FedAvgMomentum(1.1), "beta", "1.1"),
        (lambda: FedAvgMomentum(0.1, 0.0), "lr", "0.0"),
        (lambda: FedAvgMomentum(0.1, eta=-1.0), "eta", "-1.0"),
        (lambda: SCAFFOLDMomentum(num_clients=0), "num_clients", "0"),
        (lambda: GlobalMomentum().scalars({}), "momentum-beta", "None"),
        (lambda: GlobalMomentum().scalars({"momentum-beta": 1.5}), "momentum-beta", "1.5"),
    ],
)
def test_what_is_out_of_range_is_refused(make, key, value):
    with pytest.raises(ConfigError) as caught:
        make()
    assert key in str(caught.value)
    assert value in str(caught.value)


def test_numbers_of_steps_that_nobody_can_have_done_are_refused():
    rule = replace(FedAvgMomentum(), beta=0.5)
    assert rule.refuses({"steps": 3}) is None
    assert "0.5" in rule.refuses({"steps": 0.5})
