"""FedDyn (arXiv:2111.04263) and FedSpeed (arXiv:2302.10429), server and clients together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from heterogeneous import DIM, LR, STEPS, Learnt, Losses, N, cohorts

from fl.clients import Corrected, DynamicRegularization, Received, Sam, Sgd
from fl.errors import ConfigError
from fl.strategies import FedDyn, FedSpeed

ALPHA = 0.5
DYNAMIC = Corrected(Sgd(LR), DynamicRegularization())
part_and_all = pytest.mark.parametrize("clients", [2, N], ids=["2 of 8", "all"])


def written_out(asked, *, rho=None, active=False):
    """Models by the papers' recursions in the form of the authors' code, in float64.

    There u_i = -a_i / alpha, and the server adds the mean of all u_i to that of the active models.
    """
    losses, x, u = Losses(), np.zeros(DIM), np.zeros((N, DIM))
    models = [x]
    for cohort in asked:
        y = np.tile(x, (N, 1))
        for i in cohort:
            for _ in range(STEPS):
                g = losses.gradient(i, y[i])
                if rho is not None:
                    g = losses.gradient(i, y[i] + rho * g / np.linalg.norm(g))
                y[i] = y[i] - LR * (g + ALPHA * (y[i] - (x - u[i])))
            u[i] += y[i] - x
        x = y[cohort].mean(axis=0) + (u[cohort] if active else u).mean(axis=0)
        models.append(x)
    return np.array(models)


@part_and_all
def test_feddyn_is_the_authors_recursion(clients):
    asked = cohorts(clients, 50)
    learnt = Learnt(FedDyn(N, ALPHA), DYNAMIC, asked)
    np.testing.assert_allclose(learnt.models, written_out(asked), rtol=1e-4, atol=1e-4)


@part_and_all
@pytest.mark.parametrize("duals", ["all", "active"])
def test_fedspeed_is_the_recursion_of_its_code_and_of_its_paper(clients, duals):
    asked, client = cohorts(clients, 50), Corrected(Sam(LR, rho=0.1), DynamicRegularization())
    learnt = Learnt(FedSpeed(N, ALPHA, duals), client, asked)
    expected = written_out(asked, rho=0.1, active=duals == "active")
    scale = np.abs(expected).max(axis=1, keepdims=True).clip(1)
    np.testing.assert_allclose(learnt.models / scale, expected / scale, atol=2e-4)


@pytest.mark.parametrize(("clients", "rounds"), [(2, 400), (N, 100)], ids=["2 of 8", "all"])
def test_it_finds_the_optimum_of_clients_that_differ(clients, rounds):
    learnt = Learnt(FedDyn(N, ALPHA), DYNAMIC, cohorts(clients, rounds))
    assert learnt.error < 1e-4
    gradients = [learnt.losses.gradient(i, learnt.losses.optimum) for i in range(N)]
    np.testing.assert_allclose(learnt.kept("a_i"), gradients, atol=5e-3)


def test_with_momentum_it_finds_the_optimum_too():
    client = Corrected(Sgd(LR / 2, momentum=0.5), DynamicRegularization())
    assert Learnt(FedDyn(N, ALPHA), client, cohorts(2, 400)).error < 1e-4


@part_and_all
def test_after_every_round_h_is_the_mean_of_all_clients_a_i(clients):
    asked = cohorts(clients, 12)
    for rounds in range(1, 12):
        learnt = Learnt(FedDyn(N, ALPHA), DYNAMIC, asked[:rounds])
        np.testing.assert_allclose(
            learnt.states[-1].h, learnt.kept("a_i").mean(axis=0), rtol=1e-4, atol=1e-5
        )


@part_and_all
def test_the_first_round_goes_farther_by_the_share_of_clients_asked(clients):
    # h = -alpha / N sum delta_i, so that w = mean (w_i) + |S| / N mean delta_i, whatever alpha is.
    asked = cohorts(clients, 1)
    losses = Losses()
    for alpha in (1e-6, 1.0):
        way = 1 - (1 - LR * (losses.a + alpha)) ** STEPS
        deltas = (way * losses.a * losses.c / (losses.a + alpha))[asked[0]]
        got = Learnt(FedDyn(N, alpha), DYNAMIC, asked).models[1]
        np.testing.assert_allclose(got, (1 + clients / N) * deltas.mean(axis=0), rtol=1e-4)


def test_with_all_clients_both_servers_of_fedspeed_are_feddyns():
    asked, client = cohorts(N, 30), Corrected(Sam(LR, rho=0.0), DynamicRegularization())
    feddyn = Learnt(FedDyn(N, ALPHA), DYNAMIC, asked).models
    for duals in ("all", "active"):
        got = Learnt(FedSpeed(N, ALPHA, duals), client, asked).models
        np.testing.assert_allclose(got, feddyn, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_with_a_part_of_the_clients_the_papers_server_does_not_settle(alpha):
    asked, client = cohorts(2, 300), Corrected(Sam(LR, rho=0.0), DynamicRegularization())
    worst = {}
    for duals in ("all", "active"):
        learnt = Learnt(FedSpeed(N, alpha, duals), client, asked)
        worst[duals] = max(learnt.losses.error(model) for model in learnt.models[-50:])
    assert worst["all"] < 1e-2
    assert worst["active"] > 0.5


def test_the_ascent_leaves_a_bias_of_its_radius():
    found = [
        Learnt(
            FedSpeed(N, ALPHA),
            Corrected(Sam(LR, rho=rho), DynamicRegularization()),
            cohorts(N, 200),
        ).error
        for rho in (0.1, 0.01)
    ]
    assert 1e-4 < found[0] < 3e-2
    assert found[0] / found[1] == pytest.approx(10, rel=0.3)


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (lambda: FedDyn(0), "num_clients", "0"),
        (lambda: FedDyn(8, 0.0), "alpha", "0.0"),
        (lambda: FedDyn(8, float("nan")), "alpha", "nan"),
        (lambda: FedSpeed(8, 0.1, "some"), "duals", "some"),
        (lambda: DYNAMIC.scalars({}), "feddyn-alpha", ""),
        (lambda: DYNAMIC.scalars({"feddyn-alpha": 0.0}), "feddyn-alpha", "0.0"),
    ],
)
def test_what_is_out_of_range_is_refused(make, key, value):
    with pytest.raises(ConfigError) as caught:
        make()
    assert key in str(caught.value)
    assert value in str(caught.value)


def test_a_client_keeps_its_dual_and_sends_it_if_it_is_told():
    # f = a x^2 / 2 from x = 2, one step: w = x - lr a x; a_i = -alpha (w - x) = alpha lr a x.
    rule = Corrected(Sgd(0.1), DynamicRegularization())

    class Loss:
        examples = 1

        def grad(self, w):
            return 3.0 * w, 1.5 * (w**2).sum()

    x = torch.tensor([2.0])
    for sends in (False, True):
        scalars = rule.scalars({"feddyn-alpha": 0.5, "feddyn-sends-dual": sends})
        received = Received(x, {}, rule.first_memory(x, scalars), scalars)
        w, state, _ = rule.step(x, rule.init(received), received, Loss(), 0)
        done = rule.finish(w, state, received, 1)
        assert done.memory["a_i"].item() == pytest.approx(0.5 * 0.1 * 3 * 2)
        assert done.w.item() == pytest.approx(1.4 - (0.6 if sends else 0.0))
