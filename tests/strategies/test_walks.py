"""Tokens that walk: the kernel, predicted variances, and what becomes of tokens on any fleet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from networks import A3, B3, Q3, attacked, run
from scipy.linalg import solve_continuous_lyapunov
from stand_ins import Scripted

from fl.attacks import ConstantUpdate
from fl.compression import TopK
from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.strategies import SASRRW, Exchange, LocalTraining, Walks
from fl.topologies import BaseGraph, Complete, DirectedRing, Isolated, Ring, Star
from fl.topologies.weights import NeighbourAverage

SIZE = 137  # bytes of a model of two numbers, as a message has it


def kernel(rule, P, x):
    """Returns K[x], shape (n, n), of a token with given shares of visits."""
    state = rule.init(np.zeros(1, np.float32), len(P))._replace(visits=np.asarray(x))
    return np.stack([rule.leaves(state, row) for row in np.asarray(P)])


def stationary(K):
    """Returns pi with pi K = pi."""
    n = len(K)
    return np.linalg.lstsq(np.vstack([K.T - np.eye(n), np.ones(n)]), np.eye(n + 1)[n])[0]


# ---- the kernel ----------------------------------------------------------------------------------


def test_the_kernel_is_the_documents():
    P, x = np.full((3, 3), 1 / 3), [0.5, 0.3, 0.2]
    row = {alpha: kernel(SASRRW(alpha=alpha), P, x)[0] for alpha in (1.0, 2.0)}
    np.testing.assert_allclose(row[1.0], [0.193548, 0.322581, 0.483871], atol=1e-6)
    np.testing.assert_allclose(row[2.0], [0.099723, 0.277008, 0.623269], atol=1e-6)


def test_without_repulsion_or_with_even_visits_it_is_the_base_chain():
    P = Ring(5).matrix(0).toarray()
    np.testing.assert_allclose(kernel(SASRRW(alpha=0.0), P, [0.6, 0.1, 0.1, 0.1, 0.1]), P)
    np.testing.assert_allclose(kernel(SASRRW(alpha=50.0), P, np.full(5, 0.2)), P)


def test_its_invariant_law_for_visits_that_stay_is_the_papers():
    rng = np.random.default_rng(0)
    P, x, alpha = Ring(5).matrix(0).toarray(), rng.dirichlet(np.ones(5)), 2.0
    repelled = (5 * x) ** -alpha
    pi = repelled * (P @ repelled)
    found = stationary(kernel(SASRRW(alpha=alpha), P, x))
    np.testing.assert_allclose(found, pi / pi.sum(), atol=1e-12)


def test_a_large_alpha_overflows_nothing_and_goes_where_it_has_been_least():
    x = np.array([0.999997, 1e-6, 1e-6, 1e-6])
    K = kernel(SASRRW(alpha=500.0), np.full((4, 4), 0.25), x)
    np.testing.assert_allclose(K, np.tile([0, 1 / 3, 1 / 3, 1 / 3], (4, 1)), atol=1e-12)


# ---- variances -----------------------------------------------------------------------------------

B = np.array([0.0, 1.0, 3.0, -2.0, 4.0])  # f_i = (theta - b_i)^2 / 2 on a ring of five
H = B - B.mean()  # -grad f_i at the best theta


def linearised(alpha):
    """Returns D, the derivative of the invariant law by x at 1/n, and the chain's covariance.

    Both from the rule's own kernel, by differences.
    """
    n, mu, e = 5, np.full(5, 0.2), 1e-5
    rule, P = SASRRW(alpha=alpha), Ring(5).matrix(0).toarray()
    D = np.empty((n, n))
    for k in range(n):
        step = e * (np.eye(n)[k] - mu)  # which leaves the sum at 1
        both = [stationary(kernel(rule, P, mu + sign * step)) for sign in (1, -1)]
        D[:, k] = (both[0] - both[1]) / (2 * e)
    K = kernel(rule, P, mu)
    fundamental = np.linalg.inv(np.eye(n) - K + 1 / n)  # of an ergodic chain
    half = np.diag(mu) @ fundamental
    return D, half + half.T - np.diag(mu) - np.outer(mu, mu)


@pytest.mark.parametrize(("alpha", "V"), [(0.0, 1.56), (1.0, 0.473290), (5.0, 0.061156)])
def test_the_predicted_variance_where_visits_are_faster_is_the_documents(alpha, V):
    D, covariance = linearised(alpha)
    noise = np.linalg.solve(np.eye(5) - D, covariance) @ np.linalg.inv(np.eye(5) - D).T
    assert H @ noise @ H / 2 == pytest.approx(V, abs=2e-6)


@pytest.mark.parametrize(("alpha", "V"), [(0.0, 1.56), (1.0, 0.857561), (5.0, 0.307558)])
def test_the_predicted_variance_where_both_are_as_fast_is_the_documents(alpha, V):
    D, covariance = linearised(alpha)
    drift = np.block([[-np.ones((1, 1)), (H @ D)[None]], [np.zeros((5, 1)), D - np.eye(5)]])
    G = np.vstack([H[None], np.eye(5)])
    found = solve_continuous_lyapunov(drift, -G @ covariance @ G.T)
    assert found[0, 0] == pytest.approx(V, abs=2e-6)


def walked(alpha, a, b, steps, seed):
    """Returns theta after a walk, and beta."""
    rule, P = SASRRW(alpha=alpha, a=a, b=b), Ring(5).matrix(0).toarray()
    rng = np.random.default_rng(seed)
    state, at = rule.init(np.float32([B.mean()]), 5), 0
    for _ in range(steps):
        at = rng.choice(5, p=rule.leaves(state, P[at]))
        after = state.x - (state.x - np.float32(B[at]))
        state = rule.learns(rule.goes(state, at), LocalTraining(state.x, after))
    return float(state.x[0]), (steps + 1) ** -b


@pytest.mark.slow
def test_walks_have_the_variances_that_the_document_simulated():
    for alpha, simulated in ((0.0, 1.87), (5.0, 0.0996)):  # of 4,000 walks of 6,000 steps
        ends = [walked(alpha, 0.6, 0.9, 1500, seed) for seed in range(150)]
        theta, beta = np.array(ends).T
        found = np.mean((theta - B.mean()) ** 2) / beta[0]
        assert found == pytest.approx(simulated, rel=0.45)  # 4 deviations of 150 squares


# ---- tokens --------------------------------------------------------------------------------------


def visited(ran):
    return [node for (node, _), _ in sorted(ran.begun().items(), key=lambda item: item[1])]


def test_a_token_steps_along_the_gradients_of_those_it_visits():
    ran = run(Walks(SASRRW(b=0.5), topology=Q3, seed=3), num_rounds=4)
    x, path = np.float32(0), visited(ran)[:12]
    for n, i in enumerate(path, 1):
        x -= np.float32((n + 1) ** -0.5) * np.float32(0.1 * A3[i]) * (x - np.float32(B3[i]))
        if n % 3 == 0:
            np.testing.assert_allclose(ran.models[n // 3], [[x, x]], rtol=1e-5)
    assert set(path) == {0, 1, 2}
    assert all(Q3.matrix(0)[i, j] > 0 for i, j in pairwise(path))


def test_repulsion_visits_all_more_evenly_than_an_ordinary_walk():
    n = 12

    def unevenness(alpha):
        method = Walks(SASRRW(alpha=alpha, a=1.0), topology=Ring(n), seed=1)
        path = visited(run(method, a=np.ones(n), b=np.zeros(n), num_rounds=12))
        return np.bincount(path, minlength=n).std()

    assert unevenness(10.0) < 0.4 * unevenness(0.0)


def test_what_crosses_an_edge_is_the_model_and_the_visits_and_staying_is_free():
    ran = run(Walks(SASRRW(), topology=Q3, seed=3), num_rounds=4)
    path = visited(ran)
    sent = len(ran.of(Event.TRANSFER))
    assert ran.grid.engine.bytes_up == sent * (SIZE + 4 * 3)
    moved = sum(i != j for i, j in pairwise(path))
    assert moved <= sent <= moved + 2  # to the first node, and from the last
    assert moved < len(path) - 1


def test_several_tokens_take_as_many_steps_at_a_time_and_their_mean_is_the_model():
    def times(walkers):
        method = Walks(SASRRW(), topology=Complete(6), walkers=walkers, evaluated_nodes=None)
        return run(method, a=np.ones(6), b=np.arange(6), num_rounds=10)

    one, three = times(1), times(3)
    assert one.times[-1] == pytest.approx(60)
    assert 20 <= three.times[-1] < 35  # two that meet wait for each other
    assert [len(models) for models in three.models[1:]] == [3] * 10
    assert one.facts[-1]["consensus_distance"] == 0
    busy = {}
    for time, _, node, *_ in three.of(Event.COMPUTE_START):
        assert time >= busy.get(node, 0.0)  # one token at a time
        busy[node] = time + 1.0


def test_tokens_outlive_lost_payloads_and_nodes_that_fail_or_are_away():
    n, rounds = 6, 20
    lossy = {"faults": Faults(dropout=0.2, message_loss=0.3, detection_s=0.5)}
    for fleet in (lossy, {"availability": Scripted(n, {2: [3.0, 40.0], 4: [5.0]})}):
        method = Walks(SASRRW(), topology=Ring(n), walkers=2, retry_s=1.0)
        ran = run(method, a=np.ones(n), b=np.full(n, 3.0), num_rounds=rounds, **fleet)
        assert len(ran.models) == rounds + 1
        trouble = sum(f["absent_nodes"] + f["lost_payloads"] for f in ran.facts[1:])
        assert (trouble > 20) == (fleet is lossy)  # who is away is not asked
        if fleet is not lossy:
            assert max(t for (i, _), t in ran.begun().items() if i == 4) <= 6
        assert method.steps == n * rounds
        np.testing.assert_allclose(ran.models[-1], 3, atol=0.02)


def test_a_byzantine_node_hands_on_what_its_attack_makes():
    method = attacked(Walks(SASRRW(), topology=Q3, seed=3), ConstantUpdate(3.0), [1])
    ran = run(method, num_rounds=6)
    assert ran.grid.trace.faults()["forged"] >= 3
    assert np.isfinite(ran.models[-1]).all()


def test_a_model_that_is_not_finite_is_thrown_away():
    method = Walks(SASRRW(), topology=Complete(4), seed=2)
    ran = run(
        method,
        a=np.ones(4),
        b=np.zeros(4),
        num_rounds=6,
        change=lambda i, x: x + np.float32(np.inf if i == 2 else 1),
    )
    assert np.isfinite(ran.models[-1]).all()
    assert ran.models[-1].max() > 3


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Walks(SASRRW(), topology=DirectedRing(4)), "topology is DirectedRing"),
        (lambda: Walks(SASRRW(), topology=BaseGraph(6)), "topology is BaseGraph"),
        (lambda: Walks(SASRRW(), topology=Star(4, weights=NeighbourAverage())), "symmetric"),
        (lambda: Walks(SASRRW(), topology=Isolated(4)), "topology is Isolated"),
        (lambda: Walks(SASRRW(), topology=Q3, walkers=0), "walkers is 0"),
        (lambda: SASRRW(alpha=-1.0), "alpha is -1"),
        (lambda: SASRRW(a=0), "a is 0"),
        (lambda: SASRRW(a=1.5), "a is 1.5"),
        (lambda: SASRRW(b=2), "b is 2"),
        (
            lambda: Walks(SASRRW(), topology=Q3).within(Exchange(uplink=TopK(k=1))),
            "compressor is TopK",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, named):
    with pytest.raises(ConfigError, match=named):
        make()
