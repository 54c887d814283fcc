"""MATCHA against closed forms, an independent solver, and its own draws."""

import networkx as nx
import numpy as np
import pytest
from many_cases import for_each
from scipy.optimize import minimize

from fl.errors import ConfigError
from fl.strategies import SGP, DFedAvg, Gossip
from fl.topologies import (
    MATCHA,
    Complete,
    DirectedRing,
    ErdosRenyi,
    OnePeerExponential,
    RandomRegular,
    Ring,
    Star,
    Torus,
    Tree,
    consensus_rate,
)
from fl.topologies.matcha import activation, matchings_of, mixing_weight


def laplacians(matchings, n):
    graphs = [nx.Graph(m) for m in matchings]
    for graph in graphs:
        graph.add_nodes_from(range(n))
    return np.array([nx.laplacian_matrix(g, range(n)).toarray().astype(float) for g in graphs])


def lambda_2(p, L):
    return np.linalg.eigvalsh(np.tensordot(p, L, 1))[1]


@pytest.mark.parametrize(
    "graph",
    [
        *(nx.gnp_random_graph(n, p, seed=n) for n in (7, 12, 25) for p in (0.2, 0.6)),
        *(nx.complete_graph(n) for n in (2, 5, 8)),
        nx.cycle_graph(9),
        nx.star_graph(6),
        nx.petersen_graph(),
    ],
)
def test_matchings_have_every_edge_once_and_are_at_most_one_more_than_the_degree(graph):
    found = matchings_of(graph)
    edges = sorted(edge for matching in found for edge in matching)
    assert edges == sorted((min(e), max(e)) for e in graph.edges)
    assert all(nx.is_matching(graph, set(matching)) for matching in found)
    degree = max(dict(graph.degree).values())
    assert degree <= len(found) <= degree + 1


def test_an_odd_ring_and_petersens_graph_need_one_more():  # both are of Vizing's class 2
    assert len(matchings_of(nx.cycle_graph(7))) == 3
    assert len(matchings_of(nx.petersen_graph())) == 4


@pytest.mark.parametrize("budget", [0.2, 0.5])
@for_each("base", [ErdosRenyi(10, seed=3), Tree(9), RandomRegular(8, k=3)])
def test_probabilities_keep_the_budget_and_no_other_solver_finds_a_better_one(base, budget):
    topology = MATCHA(base.num_nodes, base, budget=budget)
    p, L = topology.probabilities, laplacians(topology.matchings, base.num_nodes)
    M = len(p)
    assert (p >= 0).all()
    assert (p <= 1).all()
    assert p.sum() <= budget * M + 1e-9
    found = lambda_2(p, L)
    assert found >= lambda_2(np.full(M, budget), L) - 1e-12
    rng = np.random.default_rng(0)

    def smooth(q, sharp=2_000.0):  # below lambda_2 by at most ln(n) / sharp
        values = np.linalg.eigvalsh(np.tensordot(q, L, 1))[1:]
        return values[0] - np.log(np.exp(-sharp * (values - values[0])).sum()) / sharp

    best = 0.0
    for _ in range(3):
        start = rng.dirichlet(np.ones(M)) * budget * M
        ended = minimize(
            lambda q: -smooth(q),
            np.clip(start, 0, 1),
            method="SLSQP",
            bounds=[(0, 1)] * M,
            constraints={"type": "ineq", "fun": lambda q: budget * M - q.sum()},
            options={"maxiter": 150},
        )
        q = np.clip(ended.x, 0, 1)
        best = max(best, lambda_2(q * min(1.0, budget * M / q.sum()), L))
    assert best <= found * (1 + 2e-6)
    assert best >= found * 0.98  # it comes as far, so it could have found more


def test_a_link_that_alone_joins_two_halves_is_used_most():
    bridge = nx.barbell_graph(4, 0)
    L = laplacians(matchings := matchings_of(bridge), 8)
    p = activation(L, 0.4)
    at = next(j for j, matching in enumerate(matchings) if (3, 4) in matching)
    assert p[at] > 2 * 0.4
    assert p[at] > 1.5 * np.delete(p, at).max()


def test_the_complete_graphs_numbers_are_in_closed_form():
    # Of trace 6 each, L_j sum to lambda_2 = 7 b at most, which equal p_j = b reach: then E[L] is
    # b (n I - 11^T), E[W^2] one number beside the mean, least at alpha = 1 / (n b + 2 (1 - b)).
    n, b = 7, 0.5
    topology = MATCHA(n, Complete(n), budget=b)
    assert [len(matching) for matching in topology.matchings] == [3] * n
    np.testing.assert_allclose(topology.probabilities, b, atol=1e-5)
    assert topology.alpha == pytest.approx(1 / (n * b + 2 * (1 - b)), abs=1e-5)
    assert topology.rho == pytest.approx(1 - n * b / (n * b + 2 * (1 - b)), abs=1e-5)


def test_all_links_at_once_have_the_best_constant_weight():
    base = ErdosRenyi(12, seed=1)
    values = np.linalg.eigvalsh(nx.laplacian_matrix(base.graph(0), range(12)).toarray())
    topology = MATCHA(12, base, budget=1.0)
    assert topology.alpha == pytest.approx(2 / (values[1] + values[-1]), rel=1e-6)
    assert topology.rho == pytest.approx((1 - topology.alpha * values[1]) ** 2, rel=1e-6)
    assert consensus_rate(topology, rounds=1) ** 2 == pytest.approx(topology.rho, rel=1e-6)
    np.testing.assert_array_equal(topology.used(5), True)


def test_the_norm_is_that_of_the_mean_square_over_all_draws_and_no_other_weight_has_a_lower():
    topology = MATCHA(7, Ring(7), budget=0.5)
    L, p = laplacians(topology.matchings, 7), topology.probabilities
    M = len(p)

    def norm(alpha):
        mean = np.zeros((7, 7))
        for used in np.ndindex(*[2] * M):
            W = np.eye(7) - alpha * np.tensordot(np.array(used, float), L, 1)
            mean += np.prod(np.where(used, p, 1 - p)) * (W @ W)
        return np.linalg.norm(mean - 1 / 7, 2)

    assert norm(topology.alpha) == pytest.approx(topology.rho, abs=1e-12)
    assert all(norm(topology.alpha * f) > topology.rho for f in (0.8, 0.99, 1.01, 1.3))
    assert mixing_weight(L, np.full(M, 0.5))[1] >= topology.rho - 1e-9


def test_rounds_use_matchings_as_often_as_they_should_and_messages_are_the_budgets():
    base = ErdosRenyi(12, seed=1)
    topology, rounds = MATCHA(12, base, seed=2, budget=0.4), 2_000
    used = np.mean([topology.used(t) for t in range(rounds)], axis=0)
    p = topology.probabilities
    assert (np.abs(used - p) <= 4 * np.sqrt(p * (1 - p) / rounds) + 1e-12).all()
    W, t = topology.matrix(3).toarray(), 3
    expected = np.eye(12) - topology.alpha * laplacians(topology.matchings, 12)[
        topology.used(t)
    ].sum(0)
    np.testing.assert_allclose(W, expected, atol=1e-12)


def test_nodes_agree_as_fast_as_the_norm_says():
    topology = MATCHA(12, ErdosRenyi(12, seed=1), budget=0.5)
    x = np.random.default_rng(0).standard_normal((12, 200))
    x -= x.mean(axis=0)
    before, rounds = np.square(x).sum(), 60
    for t in range(rounds):
        x = topology.matrix(t) @ x
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
    assert (np.square(x).sum() / before) ** (1 / rounds) < topology.rho + 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MATCHA(8, Ring(8), budget=0.0), "budget is 0"),
        (lambda: MATCHA(8, Ring(8), budget=1.5), "budget is 1.5"),
        (lambda: MATCHA(8, Ring(9)), "base is a Ring of 9 nodes"),
        (lambda: MATCHA(8, DirectedRing(8)), "base is DirectedRing"),
        (lambda: MATCHA(8, OnePeerExponential(8)), "base is OnePeerExponential"),
        (lambda: MATCHA(8, ErdosRenyi(8, redraw=True)), "base is ErdosRenyi"),
        (lambda: MATCHA(8, "ring"), "base is 'ring'"),
        (lambda: Gossip(SGP(), topology=MATCHA(8, Ring(8))), "divides by the weights"),
    ],
)
def test_what_is_no_graph_or_no_budget_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_node_whose_weight_is_negative_mixes_all_the_same():
    topology = MATCHA(6, Star(6), budget=0.5)
    assert min(topology.matrix(t).data.min() for t in range(30)) < 0
    Gossip(DFedAvg(), topology=topology)
    assert topology.matrix(0).diagonal().shape == (6,)
    assert Torus(9).signed is False
