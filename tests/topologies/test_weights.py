"""Weights against worked examples, and what each of them promises on any graph."""

import networkx as nx
import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from topology_members import WEIGHTS

import fl.topologies
from fl.errors import ConfigError
from fl.topologies import (
    ErdosRenyi,
    Lazy,
    LazyMetropolis,
    MaxDegree,
    MetropolisHastings,
    NeighbourAverage,
    PushSum,
    Ring,
    Star,
    Weights,
    adjacency_of,
    spectral_gap,
)

# Node 0 hangs on the triangle 1, 2, 3: an irregular graph, with the weights worked out by hand.
KITE = adjacency_of(nx.Graph([(0, 1), (1, 2), (1, 3), (2, 3)]))
GRAPHS = [
    nx.gnp_random_graph(15, 0.3, seed=1),
    nx.star_graph(6),
    nx.barabasi_albert_graph(20, 2, seed=0),
    nx.empty_graph(3),
    nx.path_graph(2),
]


def configured(name):
    with initialize_config_module("fl.conf", version_base=None):
        return instantiate(compose(f"topology/weights/{name}")["topology"]["weights"])


def test_every_rule_for_weights_has_a_configuration():
    offered = {getattr(fl.topologies, name) for name in fl.topologies.__all__}
    rules = {c for c in offered if isinstance(c, type) and issubclass(c, Weights)}
    assert {type(configured(name)) for name in WEIGHTS} == rules - {Weights}


@pytest.mark.parametrize("graph", GRAPHS, ids=["random", "star", "tree", "empty", "pair"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_promise_what_they_keep(name, graph):
    weights = configured(name)
    W = weights(adjacency_of(graph)).toarray()
    support = nx.to_numpy_array(graph, nodelist=range(len(graph)), weight=None)
    np.testing.assert_array_equal(W > 0, (support + np.eye(len(W))) > 0)
    assert (W >= 0).all()
    if weights.stochasticity == "symmetric":
        np.testing.assert_array_equal(W, W.T)
    if weights.stochasticity != "columns":
        np.testing.assert_allclose(W.sum(axis=1), 1, atol=1e-15)
    if weights.stochasticity != "rows":
        np.testing.assert_allclose(W.sum(axis=0), 1, atol=1e-15)


def test_metropolis_hastings_on_the_worked_example():
    third = 1 / 3
    W = MetropolisHastings()(KITE).toarray()
    expected = [
        [0.75, 0.25, 0, 0],
        [0.25, 0.25, 0.25, 0.25],
        [0, 0.25, 1 - 0.25 - third, third],
        [0, 0.25, third, 1 - 0.25 - third],
    ]
    np.testing.assert_allclose(W, expected, atol=1e-15)
    assert spectral_gap(MetropolisHastings()(KITE)) == pytest.approx(0.25, abs=1e-12)
    x = W @ np.array([4.0, 0, 8, 0])
    np.testing.assert_allclose(x, [3, 3, 10 / 3, 8 / 3])
    np.testing.assert_allclose(W @ x, [3, 3, 3 + 1 / 36, 3 - 1 / 36])


def test_lazy_metropolis_on_the_worked_example():
    W = LazyMetropolis()(KITE).toarray()
    sixth = 1 / 6
    expected = [
        [1 - sixth, sixth, 0, 0],
        [sixth, 0.5, sixth, sixth],
        [0, sixth, 1 - sixth - 0.25, 0.25],
        [0, sixth, 0.25, 1 - sixth - 0.25],
    ]
    np.testing.assert_allclose(W, expected, atol=1e-15)


def test_maximum_degree_on_the_worked_example():
    W = MaxDegree()(KITE).toarray()
    laplacian = np.array([[1, -1, 0, 0], [-1, 3, -1, -1], [0, -1, 2, -1], [0, -1, -1, 2]])
    np.testing.assert_allclose(W, np.eye(4) - laplacian / 4, atol=1e-15)


def test_the_neighbours_average_on_the_worked_example():
    W = NeighbourAverage()(KITE).toarray()
    np.testing.assert_allclose(W[0], [1 / 2, 1 / 2, 0, 0])
    np.testing.assert_allclose(W[1], [1 / 4] * 4)
    # Consensus is on the mean weighted by degree + 1, the left eigenvector: here 2, 4, 3, 3 of 12.
    limit = np.linalg.matrix_power(W, 200)
    np.testing.assert_allclose(limit, np.tile([2 / 12, 4 / 12, 3 / 12, 3 / 12], (4, 1)))


def test_push_sum_on_the_worked_example():
    # 0 sends to 1 and 2, 1 to 2, 2 to 0.
    P = PushSum()(adjacency_of(nx.DiGraph([(0, 1), (0, 2), (1, 2), (2, 0)])))
    expected = [[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]]
    np.testing.assert_allclose(P.toarray(), expected)
    x, w = np.array([3.0, 0, 6]), np.ones(3)
    x, w = P @ x, P @ w
    np.testing.assert_allclose(x / w, [4.8, 1.2, 3])
    for _ in range(100):
        x, w = P @ x, P @ w
    np.testing.assert_allclose(x / w, 3)
    np.testing.assert_allclose(w, [1, 2 / 3, 4 / 3])


def test_lazy_weights_are_half_a_step():
    W = Lazy(MaxDegree())(KITE).toarray()
    np.testing.assert_allclose(W, (np.eye(4) + MaxDegree()(KITE).toarray()) / 2)
    assert Lazy(PushSum()).stochasticity == "columns"
    assert Lazy(PushSum()).for_directed
    assert not Lazy().for_directed


@pytest.mark.parametrize("weights", [LazyMetropolis(), Lazy()])
def test_lazy_weights_have_no_negative_eigenvalue(weights):
    for graph in [*GRAPHS, nx.complete_bipartite_graph(4, 5), nx.cycle_graph(8)]:
        if graph.size():
            values = np.linalg.eigvalsh(weights(adjacency_of(graph)).toarray())
            assert values.min() > -1e-14


@pytest.mark.parametrize("weights", [MetropolisHastings(), LazyMetropolis(), MaxDegree(), Lazy()])
def test_weights_for_undirected_graphs_refuse_directed_ones(weights):
    with pytest.raises(ConfigError, match=r"the graph is directed.*use topology/weights=push_sum"):
        ErdosRenyi(8, p=0.5, directed=True, weights=weights).matrix(0)


def test_on_a_regular_graph_a_topology_promises_more_than_the_weights():
    assert Ring(8, weights=NeighbourAverage()).stochasticity == "symmetric"
    assert Star(8, weights=NeighbourAverage()).stochasticity == "rows"
