"""SAVIC: local SGD with a shared diagonal preconditioner (arXiv:2406.00846)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from heterogeneous import DIM, Learnt, Losses, N, cohorts

from fl.clients import Corrected, Received, Sgd, SharedScaling
from fl.errors import ConfigError
from fl.strategies import SAVIC, FedAvg
from fl.strategies.round_rule import Updates

KINDS = ("adam", "rmsprop", "oasis")
LR, K, BETA, ALPHA = 0.02, 5, 0.9, 0.3
every_scaling = pytest.mark.parametrize("scaling", KINDS)


def client(lr=LR):
    return Corrected(Sgd(lr), SharedScaling())


def learn(scaling, asked, *, beta=BETA, alpha=ALPHA, lr=LR, steps=K, losses=None):
    return Learnt(SAVIC(scaling, beta, alpha), client(lr), asked, steps=steps, losses=losses)


def written_out(scaling, asked):
    """Models by the rules in float64; the first round only measures."""
    losses, x, D, models = Losses(), np.zeros(DIM), None, [np.zeros(DIM)]
    v = np.zeros(DIM)  # Adam's second moment, as its own paper has it
    for t, cohort in enumerate(asked, 1):
        y = np.tile(x, (N, 1))
        if D is not None:
            for i in cohort:
                for _ in range(K):
                    y[i] -= LR * losses.gradient(i, y[i]) / np.maximum(ALPHA, np.abs(D))
        if scaling == "oasis":
            H = losses.a[cohort].mean(axis=0)
            D = H if D is None else BETA * D + (1 - BETA) * H
        else:
            H = np.mean([losses.gradient(i, x) for i in cohort], axis=0)
            if scaling == "adam":
                v = BETA * v + (1 - BETA) * H**2
                D = np.sqrt(v / (1 - BETA**t))
            else:
                D = np.sqrt(H**2 if D is None else BETA * D**2 + (1 - BETA) * H**2)
        x = y[cohort].mean(axis=0)
        models.append(x)
    return np.array(models)


@every_scaling
@pytest.mark.parametrize("clients", [2, N], ids=["2 of 8", "all"])
def test_it_is_the_rules_written_out(scaling, clients):
    asked = cohorts(clients, 50)
    learnt = learn(scaling, asked)
    np.testing.assert_allclose(learnt.models, written_out(scaling, asked), rtol=1e-4, atol=2e-4)


class Equal(FedAvg):
    """FedAvg of clients that weigh the same."""

    def step(self, state, updates):
        return super().step(state, updates.unweighted())


@every_scaling
def test_where_the_bound_is_all_it_is_local_sgd_bit_for_bit(scaling):
    asked, bound = cohorts(3, 20), 2.0**12  # divisions by a power of two are exact
    expected = Learnt(Equal(), Sgd(LR), asked[1:], steps=K)
    got = learn(scaling, asked, alpha=bound, lr=LR * bound)
    np.testing.assert_array_equal(got.models[1:], expected.models)


def test_by_the_mean_hessians_diagonal_one_step_is_enough():
    learnt = learn("oasis", cohorts(N, 2), beta=0.0, alpha=1e-6, lr=1.0, steps=1)
    assert learnt.error < 1e-6
    assert not learnt.models[1].any()  # the first round measures


def test_the_first_round_measures_and_does_one_step():
    for scaling in KINDS:
        rule = SAVIC(scaling)
        state = rule.init(np.zeros(2, np.float32), 2)
        assert rule.configs(state, 1, 2, np.random.default_rng(0))[0]["local-steps"] == 1
        np.testing.assert_array_equal(rule.broadcast(state)["scaling"], 1)
        extras = {"statistic": np.full((2, 2), 3.0, np.float32)}
        state = rule.step(state, Updates(np.ones((2, 2), np.float32), np.ones(2), extras=extras))
        np.testing.assert_array_equal(state.w, 0)
        np.testing.assert_array_equal(rule.broadcast(state)["scaling"], 3)
        told = rule.configs(state, 2, 2, np.random.default_rng(1))
        assert "local-steps" not in told[0]
        assert told[0] == told[1]


@every_scaling
def test_of_constant_statistics_the_diagonal_is_their_size_at_every_time(scaling):
    rule, H = SAVIC(scaling, 0.9, 1e-6), np.array([[0.5, -2.0, 30.0]], np.float32)
    state = rule.init(np.zeros(3, np.float32), 3)
    for _ in range(20):
        state = rule.step(state, Updates(0 * H, np.ones(1), extras={"statistic": H}))
        np.testing.assert_allclose(rule.broadcast(state)["scaling"], np.abs(H[0]), rtol=1e-5)


def statistic(batch, probe, dim=DIM):
    rule = client()
    w = torch.linspace(-1, 1, dim)
    scalars = rule.scalars({"savic-probe": probe})
    received = Received(w, {"scaling": torch.ones(dim)}, {}, scalars)
    end, state, _ = rule.step(w, rule.init(received), received, batch, 0)
    return rule.finish(end, state, received, 1).extras["statistic"]


class Curved:
    """f(w) = w'Aw / 2 with a full A."""

    examples = 1

    def __init__(self):
        half = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        self.A = half @ half.T

    def grad(self, w):
        return self.A @ w, w @ self.A @ w / 2

    def hessian_product(self, w, v):
        return self.A @ v


def test_hutchinsons_estimate_is_exact_for_a_diagonal_hessian():
    class Diagonal(Curved):
        def __init__(self):
            self.A = torch.diag(torch.tensor([3.0, -1.0, 0.0, 0.25]))

    for probe in (0, 1, 77):
        assert torch.equal(statistic(Diagonal(), probe, 4), torch.tensor([3.0, -1.0, 0.0, 0.25]))


def test_hutchinsons_estimate_has_the_diagonal_as_its_mean():
    batch = Curved()
    estimates = torch.stack([statistic(batch, probe, 4) for probe in range(3000)])
    error = estimates.std(dim=0) / 3000**0.5
    assert ((estimates.mean(dim=0) - batch.A.diagonal()).abs() < 4 * error).all()
    assert (estimates.std(dim=0) > 0.1).all()


@pytest.mark.parametrize(("scaling", "invariant"), [("oasis", True), ("rmsprop", False)])
def test_by_curvature_units_do_not_matter_and_by_gradients_they_do(scaling, invariant):
    s = np.array([0.01, 0.1, 1.0, 10.0, 100.0])

    class Units(Losses):  # x_j -> s_j x_j
        def __init__(self):
            super().__init__()
            self.a, self.c, self.optimum = self.a / s**2, self.c * s, self.optimum * s

    asked = cohorts(N, 15)
    plain, scaled = (
        learn(scaling, asked, alpha=1e-9, losses=losses) for losses in (Losses(), Units())
    )
    np.testing.assert_equal(
        np.allclose(np.divide(scaled.models, s), plain.models, rtol=1e-3, atol=1e-4), invariant
    )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"scaling": "adagrad"}, "scaling is"), ({"beta": 1.0}, "beta is"), ({"alpha": 0.0}, "alpha")],
)
def test_a_hyperparameter_out_of_range_is_refused(wrong, match):
    with pytest.raises(ConfigError, match=match):
        SAVIC(**wrong)


def test_a_probe_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="'savic-probe' is"):
        SharedScaling().scalars({"savic-probe": 0.5})
