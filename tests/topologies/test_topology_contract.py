"""What every topology with a configuration must do, new ones without a new test."""

from dataclasses import fields, replace

import networkx as nx
import numpy as np
import pytest
from scipy.sparse import csr_array
from topology_members import CASES, TOPOLOGIES, built, configuration

import fl.topologies
from fl.errors import ConfigError
from fl.topologies import Topology, is_doubly_stochastic

each_case = pytest.mark.parametrize(("name", "n"), CASES)
each_that_meets = pytest.mark.parametrize(
    ("name", "n"), [case for case in CASES if case[0] != "isolated"]
)


def rounds(topology, most=12):
    """A period, or as many rounds where there is none."""
    return range(topology.period or most)


def sums(W, axis):
    return np.asarray(W.sum(axis=axis)).ravel()


def test_every_topology_asked_for_has_a_configuration():
    asked = (
        "ring torus hypercube exponential one_peer_exponential complete star erdos_renyi "
        "watts_strogatz random_regular base directed_ring random_regular_redrawn random_matching"
    )
    assert set(asked.split()) <= set(TOPOLOGIES)
    configured = {type(built(name, 16)) for name in TOPOLOGIES}
    offered = {getattr(fl.topologies, name) for name in fl.topologies.__all__}
    topologies = {c for c in offered if isinstance(c, type) and issubclass(c, Topology)}
    assert configured == topologies - {Topology, fl.topologies.Weighted}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_configuration_names_every_argument(name):
    keys = {key for key in configuration(name) if not key.startswith("_")}
    assert keys == {field.name for field in fields(built(name, 16))}


@each_case
def test_weights_are_positive_on_the_graph_and_the_diagonal_and_nowhere_else(name, n):
    topology = built(name, n)
    for t in rounds(topology):
        W, graph = topology.matrix(t), topology.graph(t)
        assert W.shape == (n, n)
        assert W.dtype == np.float64
        assert (W.data > 0).all() or topology.signed
        assert list(graph) == list(range(n))
        assert nx.number_of_selfloops(graph) == 0
        assert isinstance(graph, nx.DiGraph) == topology.directed
        # Edges lead from the sender to the receiver; rows of W are receivers.
        sends = nx.to_numpy_array(graph, nodelist=range(n), weight=None)
        stored = csr_array((np.ones(W.nnz), W.indices, W.indptr), shape=W.shape).toarray()
        np.testing.assert_array_equal(stored > 0, (sends.T + np.eye(n)) > 0)
        assert (W.toarray()[~np.eye(n, dtype=bool)] >= 0).all()
        np.testing.assert_array_equal(topology.adjacency(t).toarray(), sends.T)


@each_case
def test_matrices_are_stochastic_as_declared(name, n):
    topology = built(name, n)
    kind = topology.stochasticity
    for t in rounds(topology):
        W = topology.matrix(t)
        if kind != "columns":
            np.testing.assert_allclose(sums(W, 1), 1, rtol=0, atol=1e-14)
        if kind != "rows":
            np.testing.assert_allclose(sums(W, 0), 1, rtol=0, atol=1e-14)
        if kind == "symmetric":
            np.testing.assert_array_equal(W.toarray(), W.toarray().T)
            assert not topology.directed
        assert is_doubly_stochastic(W) or kind in ("rows", "columns") or topology.signed


@each_that_meets
def test_everybody_reaches_everybody_over_a_period(name, n):
    topology = built(name, n)
    union = nx.compose_all([topology.graph(t) for t in rounds(topology, most=40)])
    assert nx.is_strongly_connected(nx.DiGraph(union))


def test_nobody_reaches_anybody_who_is_isolated():
    topology = built("isolated", 9)
    assert topology.adjacency(3).nnz == 0
    np.testing.assert_array_equal(topology.matrix(3).toarray(), np.eye(9))


@each_that_meets
def test_gossip_meets_at_the_mean_and_keeps_it_on_the_way(name, n):
    topology = built(name, n)
    x = np.random.default_rng(0).standard_normal((n, 3))
    mean = x.mean(axis=0)
    w = np.ones(n)  # push-sum's weights; they stay 1 where rows sum to 1
    t = 0
    while t < 20 or np.ptp(x / w[:, None], axis=0).max() > 1e-12:
        W = topology.matrix(t)
        x, w = W @ x, W @ w
        if t < 20:
            np.testing.assert_allclose(x.mean(axis=0), mean, atol=1e-14)
        t += 1
        assert t < 10_000, "nodes do not meet"
    np.testing.assert_allclose(x / w[:, None], np.broadcast_to(mean, x.shape), atol=1e-10)
    if topology.stochasticity in ("symmetric", "doubly"):
        np.testing.assert_allclose(w, 1, atol=1e-12)


@each_case
def test_the_seed_decides_and_nothing_else(name, n):
    one, same = built(name, n, seed=3), built(name, n, seed=3)
    for t in reversed(rounds(same)):  # in another order
        same.matrix(t)
    for t in rounds(one):
        assert (one.matrix(t) != same.matrix(t)).nnz == 0
    if "seed" in configuration(name):
        other = built(name, n, seed=4)
        assert any((one.matrix(t) != other.matrix(t)).nnz for t in rounds(one))


@each_case
def test_rounds_repeat_after_a_period_and_differ_within_it(name, n):
    topology = built(name, n)
    matrices = [topology.matrix(t) for t in rounds(topology)]
    if name == "matcha":  # which may use the same matchings again
        assert any((matrices[0] != W).nnz for W in matrices)
    elif topology.period is None or name == "one_peer_exponential":
        assert all((a != b).nnz for i, a in enumerate(matrices) for b in matrices[:i])
    if topology.period is not None:
        for t, W in enumerate(matrices):
            assert (topology.matrix(t + 3 * topology.period) != W).nnz == 0


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_matrix_that_is_kept_cannot_be_changed(name):
    W = built(name, 16).matrix(0)
    with pytest.raises(ValueError, match="read-only"):
        W.data[0] = 7


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_what_is_no_number_of_nodes_is_refused(name):
    topology = built(name, 16)
    for n in (1, 0, -4, 2.5, "8", True):
        with pytest.raises(ConfigError, match="num_nodes is"):
            replace(topology, num_nodes=n)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_there_is_no_round_before_the_first(name):
    with pytest.raises(ConfigError, match="no round -1"):
        built(name, 16).matrix(-1)
