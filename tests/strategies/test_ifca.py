"""IFCA: every client trains the one of k models that fits it best (arXiv:2006.04088)."""

from __future__ import annotations

import numpy as np
import pytest
from every_strategy import ran

from fl.aggregation import Krum
from fl.errors import ConfigError, NoStep
from fl.strategies import IFCA, FedAvg, Rounds, Updates

RNG = np.random.default_rng(0)


def brought(theta, centres, *, lr=1.0, n=None, **more):
    """Clients with losses |w - c_i|^2 / 2, who choose and take a step from what they choose."""
    centres = np.asarray(centres, np.float32)
    losses = ((theta[None] - centres[:, None]) ** 2).sum(axis=2)
    chosen = losses.argmin(axis=1)
    deltas = np.float32(lr) * (centres - theta[chosen])
    weights = np.ones(len(centres)) if n is None else np.asarray(n, float)
    clients = list(range(len(centres)))
    return Updates(deltas, weights, models=chosen.tolist(), clients=clients, **more)


def placed(rule, theta):
    theta = np.asarray(theta, np.float32)
    return rule.init(theta[0], theta.shape[1])._replace(theta=theta)


def test_with_one_model_it_is_fedavg_bit_for_bit():
    w = RNG.normal(size=5).astype(np.float32)
    ours, theirs = IFCA(1, eta=0.7), FedAvg(0.7)
    state, plain = ours.init(w, 5), theirs.init(w, 5)
    for _ in range(4):
        updates = brought(state.theta, RNG.normal(size=(3, 5)), lr=0.3, n=[1, 2, 5])
        state, plain = ours.step(state, updates), theirs.step(plain, updates)
        np.testing.assert_array_equal(state.w, plain.w)


def test_with_one_model_gradients_are_averaged_over_all_machines():
    w, gamma = RNG.normal(size=5).astype(np.float32), 0.1
    centres = RNG.normal(size=(4, 5)).astype(np.float32)
    rule = IFCA(1, averaging="gradients")
    state = rule.step(rule.init(w, 5), brought(w[None], centres, lr=gamma, n=[1, 2, 3, 4]))
    gradients = w - centres  # each counts the same, however many examples it is of
    np.testing.assert_allclose(state.w, w - gamma * gradients.mean(axis=0), rtol=1e-5)


def test_of_equal_models_the_first_is_trained_and_the_others_never_are():
    rule = IFCA(3)
    state = rule.init(np.zeros(2, np.float32), 2)
    assert state.theta.shape == (3, 2)
    after = rule.step(state, brought(state.theta, [[1, 1], [-1, 1]]))
    np.testing.assert_array_equal(after.theta[1:], state.theta[1:])
    np.testing.assert_array_equal(after.theta[0], [0, 1])


def test_two_groups_are_exact_after_one_exact_local_solve():
    rule = IFCA(2)
    state = placed(rule, [[-0.5], [0.25]])
    after = rule.step(state, brought(state.theta, [[-1], [1], [1], [-1], [1]]))
    np.testing.assert_array_equal(after.theta, [[-1], [1]])
    np.testing.assert_array_equal(after.w, [1])  # most clients are of that
    assert after.chosen == {0: 0, 1: 1, 2: 1, 3: 0, 4: 1}
    u = rule.clusters(after).mixtures
    np.testing.assert_array_equal(u[0], [1, 0])
    np.testing.assert_array_equal(u[4], [0, 1])


def test_a_cluster_of_half_the_machines_takes_half_a_gradient_step():
    gamma = 0.2
    rule = IFCA(2, averaging="gradients")
    state = placed(rule, [[-2.0], [2.0]])
    after = rule.step(state, brought(state.theta, [[-1], [1], [-1.5], [1]], lr=gamma))
    np.testing.assert_allclose(after.theta[0], [-2 + gamma / 2 * 0.75], rtol=1e-6)
    np.testing.assert_allclose(after.theta[1], [2 - gamma / 2], rtol=1e-6)


def test_permuting_the_models_permutes_everything():
    theta = RNG.normal(size=(4, 3)).astype(np.float32)
    centres, order, rule = RNG.normal(size=(9, 3)), np.array([2, 0, 3, 1]), IFCA(4)
    n = RNG.integers(1, 5, 9)
    one = rule.step(placed(rule, theta), brought(theta, centres, n=n))
    other = rule.step(placed(rule, theta[order]), brought(theta[order], centres, n=n))
    np.testing.assert_array_equal(other.theta, one.theta[order])
    assert {i: int(order[j]) for i, j in other.chosen.items()} == one.chosen


def test_who_has_no_examples_moves_nothing_and_counts_for_no_share():
    rule = IFCA(2, averaging="gradients")
    state = placed(rule, [[-2.0], [2.0]])
    few = brought(state.theta, [[-1], [1], [-9]], n=[3, 0, 0])
    after = rule.step(state, few)
    np.testing.assert_array_equal(after.theta, [[-1], [2]])
    assert after.chosen == {0: 0}
    with pytest.raises(NoStep):
        rule.step(state, brought(state.theta, [[-1], [1]], n=[0, 0]))


def test_a_cluster_too_small_for_the_aggregator_stays_and_the_others_move():
    def combine(x, weights, name):
        if len(x) < 3:
            raise NoStep("too few")
        return np.median(x, axis=0)

    rule = IFCA(2)
    state = placed(rule, [[-2.0], [2.0]])
    updates = brought(state.theta, [[-1], [1], [2], [9]], combine=combine)
    after = rule.step(state, updates)
    np.testing.assert_array_equal(after.theta, [[-2], [2]])
    with pytest.raises(NoStep, match="too few"):
        rule.step(state, brought(state.theta, [[-1], [1]], combine=combine))


def test_statistics_of_layers_are_each_clusters_own_mean_whatever_the_rate():
    rule = IFCA(2, averaging="gradients", eta=0.1)
    theta = np.array([[-2.0, 5.0], [2.0, 7.0]], np.float32)
    deltas = np.array([[1.0, 2.0], [-1.0, 4.0], [-1.0, 8.0]], np.float32)
    updates = Updates(
        deltas, np.ones(3), models=[0, 1, 1], clients=[0, 1, 2], buffers=[slice(1, 2)]
    )
    after = rule.step(placed(rule, theta), updates)
    np.testing.assert_allclose(after.theta[:, 1], [7, 13])


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("num_models", {"num_models": 0}),
        ("eta", {"eta": 0.0}),
        ("averaging", {"averaging": "both"}),
    ],
)
def test_arguments_out_of_range_are_refused(key, arguments):
    with pytest.raises(ConfigError, match=f"{key}.*{next(iter(arguments.values()))}"):
        IFCA(**arguments)


def test_fewer_clients_than_models_are_enough_as_all_are_sent_all():
    Rounds(IFCA(8), fraction_train=0.2, min_train_nodes=1).check_clients(10)
    with pytest.raises(ConfigError):
        Rounds(IFCA(2), aggregator=Krum(f=3), clients=8).check_clients(8)


@pytest.mark.parametrize(("n", "raised"), [(40, "fraction_train"), (8, "num_clients")])
def test_an_aggregator_with_too_few_clients_of_a_model_names_what_to_raise(n, raised):
    strategy = Rounds(IFCA(4), aggregator=Krum(f=1), fraction_train=0.2, min_train_nodes=8)
    with pytest.raises(
        ConfigError, match=f"^fraction_train is 0.2.*2 for each of.*4.*raise {raised}"
    ):
        strategy.check_clients(n)


IFCA_RUN = ["strategy.rule.num_models=3", "client.batch_size=20"]


def test_a_run_charges_k_models_and_says_who_is_where():
    _, run = ran("ifca", *IFCA_RUN)
    _, plain = ran("fedavg", "data=rotated_digits", "client.batch_size=20")
    sent, once = (r.summary["totals"]["bytes_down"] for r in (run, plain))
    assert 2.9 < sent / once < 3.1
    assert {"rand_index", "cluster_accuracy_min"} <= set(run.history[-1])
    assert len(run.arrays.clusters.models) == 3
    assert {name.partition("/")[0] for name in run.arrays.each} == {"0", "1", "2"}


@pytest.mark.parametrize("more", [[], ["compressor=ef_topk_int8"]], ids=["plain", "compressed"])
def test_a_reply_is_read_against_the_model_that_its_client_has_chosen(more):
    """Clients whose step is tiny leave every model where it was, whichever they choose."""
    rate = "client.rule.lr=1e-12"
    _, run = ran("ifca", *IFCA_RUN, rate, *more)
    first, last = (run.history[i]["loss"] for i in (0, -1))
    assert last == pytest.approx(first, rel=1e-5)
