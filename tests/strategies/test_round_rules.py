"""Rules of synchronous servers against their papers' recursions in float64, and against Flower's.

A rule is a function of a state and of what came in, so none of this needs clients. FedProx, which
steps as FedAvg does, is in test_fedprox.py, and SCAFFOLD with its clients in test_scaffold.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from heterogeneous import DIM, Losses, N

from fl import simulate
from fl.aggregation import FLTrust, Median
from fl.errors import ConfigError, NoStep
from fl.simulation.world.fleets import uniform
from fl.strategies import (
    SCAFFOLD,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedProx,
    FedYogi,
    QFedAvg,
    Rounds,
)
from fl.strategies.round_rule import Updates

CLIENTS, ROUNDS, SIZE = 4, 12, 5
RNG = np.random.default_rng(8)
START = RNG.standard_normal(SIZE).astype(np.float32)
DELTAS = RNG.standard_normal((ROUNDS, CLIENTS, SIZE)).astype(np.float32)
EXAMPLES = np.array([10, 40, 5, 25])
LOSSES = RNG.uniform(0.1, 3.0, (ROUNDS, CLIENTS))
STEPS = RNG.integers(1, 20, (ROUNDS, CLIENTS))

RULES = [
    FedAvg(eta=0.5),
    FedAvgM(eta=0.3, beta=0.8),
    FedAdagrad(eta=0.2, tau=0.1),
    FedAdam(eta=0.2, tau=0.05),
    FedYogi(eta=0.2, tau=0.05),
    FedProx(),
    QFedAvg(q=0.7, lr=0.2),
    FedNova(momentum=0.5),
    SCAFFOLD(num_clients=10),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


def updates(r, deltas=None, weights=EXAMPLES, **more):
    """What the clients of round r bring."""
    metrics = [
        {"train-loss": float(loss), "steps": int(steps)}
        for loss, steps in zip(LOSSES[r], STEPS[r], strict=True)
    ]
    deltas = DELTAS[r] if deltas is None else deltas
    extras = {"delta_c": 0.1 * deltas}
    return Updates(deltas, np.asarray(weights, float), metrics, extras, **more)


def models(rule, rounds=ROUNDS, **more):
    """The models of a run, shape (rounds + 1, d)."""
    state = rule.init(START, SIZE)
    found = [state.w]
    for r in range(rounds):
        state = rule.step(state, updates(r, **more))
        found.append(state.w)
    return np.array(found)


def means():
    """Delta of every round, in float64: the mean change, weighted by examples."""
    return np.einsum("rnd,n->rd", DELTAS.astype(float), EXAMPLES / EXAMPLES.sum())


def recursion(step, **state):
    """The models of w <- w + step(Delta, state), where step changes the state."""
    w = [START.astype(float)]
    for delta in means():
        w.append(w[-1] + step(delta, state))
    return np.array(w)


def flowers(kind, **arguments):
    """The models of one of Flower's strategies, whose clients change the model by the deltas."""
    app, found = ClientApp(), []

    @app.train()
    def train(message, context):
        i, r = context.node_config["partition-id"], message.content["config"]["server-round"] - 1
        w = message.content["arrays"]["w"].numpy() + DELTAS[r, i]
        metrics = {"num-examples": int(EXAMPLES[i]), "train-loss": float(LOSSES[r, i])}
        content = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    strategy = kind(
        fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, **arguments
    )

    def server(grid, context, recorder):
        strategy.start(
            grid,
            ArrayRecord({"w": Array(START)}),
            num_rounds=ROUNDS,
            evaluate_fn=lambda r, arrays: found.append(arrays["w"].numpy()),
        )

    fleet = uniform(num_clients=CLIENTS, seed=0)
    simulate(server, app, fleet, executor="serial", progress=False)
    return np.array(found)


CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # models are float32

# ---- against the papers --------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_fedavg_moves_by_eta_times_the_weighted_mean(eta):
    expected = recursion(lambda delta, _: eta * delta)
    np.testing.assert_allclose(models(FedAvg(eta)), expected, **CLOSE)


def test_fedavg_replaces_the_model_by_the_weighted_mean_of_the_clients():
    mine = models(FedAvg(), rounds=1)[1]
    of_clients = START.astype(float) + DELTAS[0]
    np.testing.assert_allclose(mine, EXAMPLES @ of_clients / EXAMPLES.sum(), **CLOSE)


@pytest.mark.parametrize(("eta", "beta"), [(1.0, 0.9), (0.3, 0.5)])
def test_fedavgm_is_a_heavy_ball(eta, beta):
    # As in the paper: v <- beta v + q, w <- w - eta v, with q = w - mean of the clients' models.
    def step(delta, state):
        state["v"] = beta * state["v"] - delta
        return -eta * state["v"]

    np.testing.assert_allclose(models(FedAvgM(eta, beta)), recursion(step, v=0.0), **CLOSE)


SECOND_MOMENTS = {
    FedAdagrad: lambda v, square, beta_2: v + square,
    FedYogi: lambda v, square, beta_2: v - (1 - beta_2) * square * np.sign(v - square),
    FedAdam: lambda v, square, beta_2: beta_2 * v + (1 - beta_2) * square,
}


@pytest.mark.parametrize("kind", SECOND_MOMENTS)
@pytest.mark.parametrize("beta_1", [0.0, 0.9])
@pytest.mark.parametrize(("beta_2", "tau"), [(0.99, 1e-3), (0.5, 0.3)])
def test_adaptive_rules_follow_algorithm_2(kind, beta_1, beta_2, tau):
    eta = 0.1

    def step(delta, state):
        state["m"] = beta_1 * state["m"] + (1 - beta_1) * delta
        state["v"] = SECOND_MOMENTS[kind](state["v"], delta**2, beta_2)
        return eta * state["m"] / (np.sqrt(state["v"]) + tau)

    own = {} if kind is FedAdagrad else {"beta_2": beta_2}
    mine = models(kind(eta=eta, beta_1=beta_1, tau=tau, **own))
    np.testing.assert_allclose(mine, recursion(step, m=0.0, v=tau**2), **CLOSE)


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0, 5.0])
def test_q_fedavg_follows_algorithm_2(q):
    lr = 0.2
    w = [START.astype(float)]
    for deltas, losses in zip(DELTAS.astype(float), LOSSES, strict=True):
        total, h = np.zeros(SIZE), 0.0
        for delta, loss in zip(deltas, losses, strict=True):
            gradient = -delta / lr  # L (w - w_i)
            total += loss**q * gradient
            h += q * loss ** (q - 1) * gradient @ gradient + loss**q / lr
        w.append(w[-1] - total / h)
    np.testing.assert_allclose(models(QFedAvg(q=q, lr=lr)), w, **CLOSE)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5)])
def test_fednova_follows_equation_9(momentum, mu):
    lr, eta = 0.1, 0.7
    p = EXAMPLES / EXAMPLES.sum()
    w = [START.astype(float)]
    for deltas, steps in zip(DELTAS.astype(float), STEPS, strict=True):
        a = np.array([unit_gradient_goes(tau, lr, momentum, mu) for tau in steps])
        tau_eff = p @ (steps if mu else a)
        w.append(w[-1] + eta * tau_eff * sum(p[i] * deltas[i] / a[i] for i in range(CLIENTS)))
    rule = FedNova(momentum=momentum, mu=mu, lr=lr, eta=eta)
    np.testing.assert_allclose(models(rule), w, **CLOSE)


def unit_gradient_goes(tau, lr, momentum, mu):
    """How many steps of lr a client moves in tau steps of its solver if all gradients are 1."""
    y = v = 0.0
    for _ in range(tau):
        v = momentum * v + 1 + mu * y
        y -= lr * v
    return -y / lr


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.5, 0.0), (0.99, 0.0), (0.0, 2.0)])
def test_fednovas_norms_are_how_far_a_unit_gradient_goes(momentum, mu):
    tau = np.arange(30)
    expected = [unit_gradient_goes(t, 0.1, momentum, mu) for t in tau]
    norms = FedNova(momentum=momentum, mu=mu, lr=0.1).norms(tau.astype(float))
    np.testing.assert_allclose(norms, expected, rtol=1e-9, atol=1e-9)


def test_scaffold_moves_by_the_plain_mean_and_c_by_its_share_of_all_clients():
    rule = SCAFFOLD(num_clients=10, eta=0.5)
    state = rule.init(START, SIZE)
    assert not state.c.any()
    for r in range(3):
        np.testing.assert_array_equal(rule.broadcast(state)["c"], state.c)
        after = rule.step(state, updates(r))
        mean = DELTAS[r].astype(float).mean(axis=0)
        np.testing.assert_allclose(after.w - state.w, 0.5 * mean, **CLOSE)
        np.testing.assert_allclose(after.c - state.c, 0.1 * mean * CLIENTS / 10, **CLOSE)
        state = after


# ---- against Flower ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "kind", "arguments"),
    [
        (FedAvg(), flower.FedAvg, {}),
        (
            FedAvgM(eta=0.3, beta=0.8),
            flower.FedAvgM,
            {"server_learning_rate": 0.3, "server_momentum": 0.8},
        ),
        (
            QFedAvg(q=0.7, lr=0.2),
            flower.QFedAvg,
            {"q": 0.7, "client_learning_rate": 0.2, "train_loss_key": "train-loss"},
        ),
    ],
    ids=["FedAvg", "FedAvgM", "QFedAvg"],
)
def test_the_models_are_flowers(rule, kind, arguments):
    np.testing.assert_allclose(models(rule), flowers(kind, **arguments), **CLOSE)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [(FedAdagrad(eta=0.2, tau=0.1), flower.FedAdagrad), (FedYogi(0.2, 0.9, 0.1), flower.FedYogi)],
    ids=["FedAdagrad", "FedYogi"],
)
def test_the_models_are_flowers_with_a_second_moment_that_begins_at_tau_squared(rule, kind):
    # Flower's begins at 0, where the paper has at least tau^2; neither corrects the bias.
    class FromTauSquared(kind):
        def configure_train(self, server_round, arrays, config, grid):
            if not self.v_t:
                self.v_t = {k: np.full_like(a.numpy(), self.tau**2) for k, a in arrays.items()}
            return super().configure_train(server_round, arrays, config, grid)

    theirs = flowers(FromTauSquared, eta=rule.eta, tau=rule.tau)
    np.testing.assert_allclose(models(rule), theirs, **CLOSE)


def test_fedadam_is_flowers_but_for_the_correction_of_the_bias():
    eta, beta_1, beta_2 = 0.1, 0.9, 0.99

    class Uncorrected(flower.FedAdam):
        """Undoes Flower's factor on eta, and begins at tau^2."""

        def aggregate_train(self, server_round, replies):
            t = server_round + 1
            self.eta = eta * (1 - beta_1**t) / np.sqrt(1 - beta_2**t)
            if not self.v_t:
                current = self.current_arrays.items()
                self.v_t = {k: np.full_like(w, self.tau**2) for k, w in current}
            return super().aggregate_train(server_round, replies)

    mine = models(FedAdam(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=0.1))
    np.testing.assert_allclose(mine, flowers(Uncorrected, tau=0.1), **CLOSE)


# ---- equalities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [FedAvgM(eta=0.5, beta=0.0), FedProx(eta=0.5)], ids=repr)
def test_without_its_parameter_it_is_fedavg_bit_for_bit(rule):
    np.testing.assert_array_equal(models(rule), models(FedAvg(eta=0.5)))


def test_q_fedavg_without_q_is_fedavg_with_equal_weights():
    equal = models(FedAvg(), weights=np.ones(CLIENTS))
    np.testing.assert_allclose(models(QFedAvg(q=0.0)), equal, **CLOSE)


def test_the_larger_q_the_more_the_client_with_the_largest_loss_decides():
    worst = DELTAS[0, LOSSES[0].argmax()]

    def similarity(q):
        step = np.diff(models(QFedAvg(q=q), rounds=1), axis=0)[0]
        return step @ worst / np.linalg.norm(step) / np.linalg.norm(worst)

    similarities = [similarity(q) for q in (0.0, 1.0, 5.0, 50.0)]
    assert similarities == sorted(similarities)
    assert similarities[-1] > 0.999


def test_fednova_with_equal_steps_is_fedavg(monkeypatch):
    monkeypatch.setattr(f"{__name__}.STEPS", np.full_like(STEPS, 7))
    for rule in (FedNova(eta=0.5), FedNova(eta=0.5, momentum=0.9)):
        np.testing.assert_allclose(models(rule), models(FedAvg(eta=0.5)), **CLOSE)


def test_of_clients_with_unequal_steps_fednova_finds_the_optimum_and_fedavg_does_not():
    # f_i = (w - c_i)^2 / 2; tau_i steps of gradient descent take 1 - (1 - lr)^tau_i of the way.
    c, tau, lr = np.array([0.0, 1.0]), np.array([1, 10]), 1e-3
    way = 1 - (1 - lr) ** tau
    found = {}
    for rule in (FedAvg(), FedNova()):
        state = rule.init(np.zeros(1, np.float32), 1)
        for _ in range(5000):
            deltas = (way * (c - state.w[0]))[:, None].astype(np.float32)
            metrics = [{"steps": int(t)} for t in tau]
            state = rule.step(state, Updates(deltas, np.ones(2), metrics))
        found[type(rule)] = state.w[0]
    assert found[FedNova] == pytest.approx(0.5, abs=2e-3)
    assert found[FedAvg] == pytest.approx(10 / 11, abs=2e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_of_clients_on_quadratics_is_equation_9_for_50_rounds(momentum):
    losses, lr, eta = Losses(), 0.05, 0.9
    steps, n = 1 + 3 * np.arange(N), 2.0 + np.arange(N)
    p, a = n / n.sum(), np.array([unit_gradient_goes(tau, lr, momentum, 0) for tau in steps])
    rule = FedNova(momentum=momentum, lr=lr, eta=eta)
    state, x = rule.init(np.zeros(DIM, np.float32), DIM), np.zeros(DIM)

    def trained(start):
        y, v = np.tile(start, (N, 1)).astype(float), np.zeros((N, DIM))
        for i, tau in enumerate(steps):
            for _ in range(tau):
                v[i] = momentum * v[i] + losses.gradient(i, y[i])
                y[i] = y[i] - lr * v[i]
        return y - start

    metrics = [{"steps": int(tau)} for tau in steps]
    for _ in range(50):
        x = x + eta * (p @ a) * (p / a) @ trained(x)
        deltas = trained(state.w).astype(np.float32)
        state = rule.step(state, Updates(deltas, n, metrics))
    np.testing.assert_allclose(state.w, x, rtol=1e-4, atol=1e-4)


def test_an_adaptive_rule_that_is_not_adaptive_is_fedavg_with_smoothed_changes():
    # With tau far above every change, eta = tau gives w <- w + m.
    m, w = np.zeros(SIZE), [START.astype(float)]
    for delta in means():
        m = 0.9 * m + 0.1 * delta
        w.append(w[-1] + m)
    for kind in (FedAdam, FedYogi):  # their v begins at tau^2, so the scale is 2 tau, and v fades
        first = models(kind(eta=2e3, tau=1e3, beta_2=0.99999))
        np.testing.assert_allclose(first, w, rtol=2e-3, atol=1e-3)


# ---- what holds for every rule -------------------------------------------------------------------


@every_rule
def test_a_step_does_not_change_what_it_is_given(rule):
    state = rule.step(rule.init(START, SIZE), updates(0))
    given = updates(1)
    arrays = [*state, given.deltas, given.weights, given.extras["delta_c"]]
    before = [np.copy(a) for a in arrays]
    for array in state:
        array.flags.writeable = False
    first, second = rule.step(state, given), rule.step(state, replace(given))
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.w != state.w).any()


@every_rule
def test_states_are_float32_of_their_form(rule):
    state = rule.init(START, SIZE)
    for r in range(2):
        state = rule.step(state, updates(r))
        assert all(value.dtype == np.float32 and value.shape == (SIZE,) for value in state)


@every_rule
def test_clients_that_weigh_nothing_change_nothing(rule):
    # Clients without examples return the model as they got it, with a weight and a loss of 0.
    idle = updates(0, np.vstack([DELTAS[0][:3], np.zeros((1, SIZE), np.float32)]))
    weights = np.append(EXAMPLES[:3], 0).astype(float)
    metrics = [*idle.metrics[:3], {"train-loss": 0.0, "steps": 0}]
    idle = replace(idle, weights=weights, metrics=metrics)
    without = Updates(
        idle.deltas[:3], weights[:3], metrics[:3], {"delta_c": idle.extras["delta_c"][:3]}
    )
    state = rule.init(START, SIZE)
    for a, b in zip(rule.step(state, idle), rule.step(state, without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@every_rule
def test_the_order_of_the_clients_does_not_matter(rule):
    order = [2, 0, 3, 1]
    there = updates(0)
    turned = Updates(
        there.deltas[order],
        there.weights[order],
        [there.metrics[i] for i in order],
        {"delta_c": there.extras["delta_c"][order]},
    )
    state = rule.init(START, SIZE)
    for a, b in zip(rule.step(state, there), rule.step(state, turned), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@every_rule
def test_a_rule_that_folds_uses_nothing_but_the_mean(rule):
    state = rule.init(START, SIZE)
    there = updates(0)
    mean = EXAMPLES @ DELTAS[0] / EXAMPLES.sum()
    extras = {"delta_c": there.extras["delta_c"][:1]}
    one = Updates(mean[None].astype(np.float32), np.ones(1), there.metrics[:1], extras)
    same = np.allclose(rule.step(state, there).w, rule.step(state, one).w, **CLOSE)
    assert same == rule.folds


# ---- an aggregator in place of the mean ----------------------------------------------------------


def median(x, weights, name):
    return Median()(x)


@pytest.mark.parametrize("rule", [FedAvg(eta=0.5), FedAvgM(beta=0.5), FedAdam(tau=0.1)], ids=repr)
def test_with_an_aggregator_a_step_is_that_of_its_one_result(rule):
    of_all = models(rule, combine=median)
    state, expected = rule.init(START, SIZE), [START]
    for r in range(ROUNDS):
        result = Median()(DELTAS[r])
        state = rule.step(state, Updates(result[None], np.ones(1)))
        expected.append(state.w)
    np.testing.assert_allclose(of_all, expected, **CLOSE)


def test_q_fedavgs_sum_is_n_times_the_aggregate():
    q, lr = 0.5, 0.2
    gradients, losses = -DELTAS[0].astype(float) / lr, LOSSES[0]
    h = q * losses ** (q - 1) * (gradients**2).sum(axis=1) + losses**q / lr
    total = CLIENTS * np.median(losses[:, None] ** q * gradients, axis=0)
    mine = models(QFedAvg(q=q, lr=lr), rounds=1, combine=median)
    np.testing.assert_allclose(mine[1], START - total / h.sum(), **CLOSE)


def test_scaffold_has_models_and_control_variates_aggregated_apart():
    seen = []

    def noting(x, weights, name):
        seen.append(name)
        return median(x, weights, name)

    state = SCAFFOLD(num_clients=8).init(START, SIZE)
    after = SCAFFOLD(num_clients=8).step(state, updates(0, combine=noting))
    assert seen == ["", "delta_c"]
    np.testing.assert_allclose(after.w, START + np.median(DELTAS[0], axis=0), **CLOSE)
    np.testing.assert_allclose(after.c, 0.5 * np.median(0.1 * DELTAS[0], axis=0), **CLOSE)


# ---- what is odd, and what is refused ------------------------------------------------------------


def test_losses_of_nothing_do_not_divide_by_zero():
    there = updates(0)
    metrics = [{"train-loss": 0.0}] * CLIENTS
    state = QFedAvg(q=0.1).init(START, SIZE)
    assert np.isfinite(QFedAvg(q=0.1).step(state, replace(there, metrics=metrics)).w).all()


def test_fednova_leaves_out_who_did_no_step():
    there = updates(0)
    metrics = [*there.metrics[:3], {"steps": 0}]
    state = FedNova().init(START, SIZE)
    without = Updates(DELTAS[0][:3], there.weights[:3], metrics[:3])
    np.testing.assert_allclose(
        FedNova().step(state, replace(there, metrics=metrics)).w,
        FedNova().step(state, without).w,
        rtol=1e-6,
    )
    with pytest.raises(NoStep):
        FedNova().step(state, replace(there, metrics=[{"steps": 0}] * CLIENTS))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FedAvg(eta=0.0), "eta is 0"),
        (lambda: FedAvg(eta=float("nan")), "eta is nan"),
        (lambda: FedAvgM(beta=1.0), "beta is 1.0"),
        (lambda: FedAvgM(eta=-1.0), "eta is -1.0"),
        (lambda: FedAdam(beta_1=1.0), "beta_1 is 1.0"),
        (lambda: FedAdam(beta_2=-0.1), "beta_2 is -0.1"),
        (lambda: FedYogi(beta_2=1.5), "beta_2 is 1.5"),
        (lambda: FedAdagrad(tau=0.0), "tau is 0"),
        (lambda: FedAdagrad(tau=1e-30), "tau is 1e-30; its square must be a float32 above 0"),
        (lambda: QFedAvg(q=-1.0), "q is -1.0"),
        (lambda: QFedAvg(q=float("inf")), "q is inf"),
        (lambda: QFedAvg(lr=0.0), "lr is 0"),
        (lambda: FedNova(momentum=1.0), "momentum is 1.0"),
        (lambda: FedNova(mu=10.0, lr=0.1), "mu is 10.0; it must be at least 0 and below 1 / lr"),
        (lambda: FedNova(momentum=0.5, mu=0.1), "momentum is 0.5 and mu is 0.1"),
        (lambda: SCAFFOLD(num_clients=0), "num_clients is 0"),
        (lambda: SCAFFOLD(num_clients=3, eta=0.0), "eta is 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_one_client_that_lies_about_its_steps_moves_no_robust_fednova():
    deltas = np.tile(np.float32([1.0, -2.0]), (5, 1))
    steps = [4.0, 4.0, 4.0, 4.0, 10.0**9]
    updates = Updates(
        deltas,
        np.ones(5),
        [{"steps": each} for each in steps],
        combine=lambda x, weights, name: np.median(x, axis=0),
        robust=True,
    )
    rule = FedNova()
    moved = rule.step(rule.init(np.zeros(2, np.float32), 2), updates).w
    np.testing.assert_allclose(moved, [1.0, -2.0], rtol=1e-6)


@pytest.mark.parametrize("steps", [-1, 0.5, 1e-300, 10**10])
def test_steps_that_nobody_can_have_done_are_refused(steps):
    assert "no number of steps" in FedNova().refuses({"steps": steps})


@pytest.mark.parametrize("rule", [FedNova(), QFedAvg(), SCAFFOLD(num_clients=3)])
def test_rules_that_combine_more_than_updates_go_with_no_aggregator_that_trusts_one(rule):
    with pytest.raises(ConfigError, match="use another aggregator"):
        Rounds(rule, aggregator=FLTrust())
