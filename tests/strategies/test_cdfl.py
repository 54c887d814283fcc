"""CDFL: clients contact the server, which estimates their mixture (arXiv:2405.15407)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays
from quadratics import run

from fl.errors import ConfigError
from fl.strategies import CDFL, Arrivals, Events, Exchange, FedAsync
from fl.strategies.staleness import Polynomial

CENTRES = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)


class Update:
    """An update that has arrived."""

    def __init__(self, x, node=7):
        self.x, self.node = np.asarray(x, np.float32), node


class Losses:
    """Proxy sets whose losses are |x - c_k|^2 / 2."""

    flops = 10.0

    def __init__(self, centres=CENTRES):
        self.centres = centres

    def __call__(self, x):
        return ((x - self.centres) ** 2).sum(axis=1).astype(float) / 2


def contact(rule, state, x, tau=0, node=7, losses=None):
    arrived = Arrivals([Update(x, node)], staleness=[tau], proxy_losses=losses or Losses())
    return rule.step(state, arrived)


def began(rule, models):
    models = np.asarray(models, np.float32)
    return rule.init(models[0], models.shape[1])._replace(models=models)


lists = arrays(float, 4, elements=some.floats(0, 1e6))


@given(lists, lists, lists, some.floats(0, 1), some.floats(0, 1))
def test_u_is_a_mixture(losses, d1, d2, a, b):
    c1, c2 = sorted([a, b])[0], abs(a - b)
    u = CDFL(4, c1=c1, c2=c2).mixture_of(losses, d1, d2)
    assert (u >= 0).all()
    assert u.sum() == pytest.approx(1)


def test_the_mixture_by_hand():
    # l / sum = (1/4, 3/4), d1 / sum = (1/2, 1/2), d2 / sum = (1/5, 4/5)
    u = CDFL(2, c1=0.5, c2=0.25, sharpness=2.0).mixture_of(
        np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([1.0, 4.0])
    )
    g = np.array([0.5 / 4 + 0.25 / 2 + 0.25 / 5, 0.5 * 3 / 4 + 0.25 / 2 + 0.25 * 4 / 5])
    np.testing.assert_allclose(u, g**-2 / (g**-2).sum())


def test_a_client_at_a_clusters_model_is_of_that_cluster():
    rule = CDFL(2, c1=0.0, c2=1.0)
    state = began(rule, [[0.8, 0.1], [-0.9, 0.2]])
    u = contact(rule, state, [0.8, 0.1]).mixtures[7]
    assert u[0] == pytest.approx(1)


def test_permuting_the_clusters_permutes_everything():
    rule = CDFL(2)
    one = contact(rule, began(rule, [[0.8, 0.1], [-0.9, 0.2]]), [0.5, 0.5])
    other = contact(
        rule, began(rule, [[-0.9, 0.2], [0.8, 0.1]]), [0.5, 0.5], losses=Losses(CENTRES[::-1])
    )
    np.testing.assert_array_equal(other.models, one.models[::-1])
    np.testing.assert_array_equal(other.mixtures[7], one.mixtures[7][::-1])


def test_clusters_move_by_their_share_and_their_own_staleness():
    rule = CDFL(2, alpha_0=0.5, staleness=Polynomial(1.0))
    state = began(rule, [[1.0, 0.0], [-1.0, 0.0]])._replace(t=5, stamps=np.array([5, 2]))
    after = contact(rule, state, [0.5, 0.5], tau=2)  # sent after contact 3, before 1 of cluster 0
    u = after.mixtures[7]
    b = 0.5 * u * np.array([1 / 3, 1.0])
    x = np.array([0.5, 0.5])
    np.testing.assert_allclose(after.models, (1 - b)[:, None] * state.models + b[:, None] * x)
    np.testing.assert_array_equal(after.stamps, [6, 6])
    np.testing.assert_allclose(rule.model_for(after, 7), u @ after.models, rtol=1e-6)
    np.testing.assert_allclose(rule.model_for(after, 8), after.models.mean(axis=0), rtol=1e-6)


def test_what_is_too_old_changes_no_cluster():
    rule = CDFL(2, tau_0=3)
    state = began(rule, CENTRES)
    assert (contact(rule, state, [9.0, 9.0], tau=4).models == state.models).all()
    assert (contact(rule, state, [9.0, 9.0], tau=3).models != state.models).any()


def test_statistics_of_layers_do_not_go_by_rate_or_age():
    rule = CDFL(2, alpha_0=0.1)
    state = began(rule, [[1.0, 4.0], [-1.0, 8.0]])
    arrived = Arrivals(
        [Update([0.5, 6.0])], staleness=[9], statistics=[slice(1, 2)], proxy_losses=Losses()
    )
    after = rule.step(state, arrived)
    u = after.mixtures[7]
    np.testing.assert_allclose(after.models[:, 1], (1 - u) * [4.0, 8.0] + u * 6.0, rtol=1e-6)


def asynchronous(rule, **fleet):
    within = Exchange(proxy=Losses(CENTRES[:1]))
    strategy = Events(rule, concurrency=3).within(within)
    return run(strategy, [1.0, -1.0, 2.0], [1.0, 2.5, 4.0], num_rounds=12, steps=3, **fleet)


def test_with_one_cluster_it_is_fedasync_bit_for_bit():
    ours = asynchronous(CDFL(1, alpha_0=0.6, rho=0.0))
    theirs = asynchronous(FedAsync(0.6, rho=0.0))
    assert ours.times == theirs.times
    np.testing.assert_array_equal(ours.models, theirs.models)


def test_the_server_is_busy_while_it_estimates():
    idle = asynchronous(CDFL(1, rho=0.0))
    busy = asynchronous(CDFL(1, rho=0.0, server_flops=40.0))  # 2 * 10 FLOPs: half a second
    assert busy.times[1] == pytest.approx(idle.times[1] + 0.5)
    assert busy.times[-1] > idle.times[-1]


def test_a_server_that_reads_replies_only_when_they_have_expired_is_refused():
    with pytest.raises(ConfigError, match=r"rule\.server_flops is 1e-05"):
        asynchronous(CDFL(1, rho=0.0, server_flops=1e-5))


def test_without_proxy_sets_it_is_refused():
    with pytest.raises(ConfigError, match="CDFL"):
        run(Events(CDFL(1)), [1.0], [1.0], num_rounds=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_clusters", 0),
        ("alpha_0", 0.0),
        ("alpha_0", 1.5),
        ("c1", -0.1),
        ("rho", -1.0),
        ("tau_0", -1),
        ("sharpness", 0.0),
        ("proxy_examples", 0),
        ("server_flops", 0.0),
    ],
)
def test_arguments_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key}.*{value}"):
        replace(CDFL(), **{key: value})


def test_weights_of_the_terms_are_at_most_one_together():
    with pytest.raises(ConfigError, match=r"c1.*0\.7.*c2.*0\.4"):
        CDFL(c1=0.7, c2=0.4)
