"""Graphs against networkx, spectra against closed forms, parameters that cannot be."""

import math

import networkx as nx
import numpy as np
import pytest

from fl.errors import ConfigError
from fl.topologies import (
    BaseGraph,
    Complete,
    DirectedRing,
    ErdosRenyi,
    ExponentialGraph,
    Hypercube,
    LazyMetropolis,
    NeighbourAverage,
    OnePeerExponential,
    Path,
    PushSum,
    RandomMatching,
    RandomPush,
    RandomRegular,
    Ring,
    Star,
    Torus,
    WattsStrogatz,
    consensus_rate,
    rounds_to_consensus,
    spectral_gap,
)


def edges(graph):
    if graph.is_directed():
        return set(graph.edges)
    return {tuple(sorted(edge)) for edge in graph.edges}


def numbered(graph, number):
    return nx.relabel_nodes(graph, {node: number(node) for node in graph})


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        (Ring(7), nx.cycle_graph(7)),
        (DirectedRing(7), nx.cycle_graph(7, nx.DiGraph)),
        (Path(7), nx.path_graph(7)),
        (Star(7), nx.star_graph(6)),
        (Complete(7), nx.complete_graph(7)),
        (
            Torus(15, rows=3),
            numbered(nx.grid_2d_graph(3, 5, periodic=True), lambda rc: 5 * rc[0] + rc[1]),
        ),
        (
            Torus(15, cols=3),
            numbered(nx.grid_2d_graph(5, 3, periodic=True), lambda rc: 3 * rc[0] + rc[1]),
        ),
        (
            Hypercube(16),
            numbered(nx.hypercube_graph(4), lambda bits: int("".join(map(str, bits)), 2)),
        ),
        (ExponentialGraph(12, directed=False), nx.circulant_graph(12, [1, 2, 4, 8])),
        (
            ExponentialGraph(12),
            nx.DiGraph((i, (i + s) % 12) for i in range(12) for s in (1, 2, 4, 8)),
        ),
        (WattsStrogatz(12, k=4, p=0.0), nx.watts_strogatz_graph(12, 4, 0.0)),
        (ErdosRenyi(5, p=1.0), nx.complete_graph(5)),
        (RandomRegular(6, k=5), nx.complete_graph(6)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_edges_are_those_of_networkx(topology, expected):
    assert edges(topology.graph(0)) == edges(expected)


def test_a_torus_is_as_square_as_its_number_of_nodes_allows():
    assert Torus(64).shape == (8, 8)
    assert Torus(1000).shape == (25, 40)
    assert Torus(15).shape == (3, 5)


def ring_eigenvalues(n):
    return [(1 + 2 * math.cos(2 * math.pi * k / n)) / 3 for k in range(1, n)]


def torus_gap(a, b):
    values = [
        (1 + 2 * math.cos(2 * math.pi * p / a) + 2 * math.cos(2 * math.pi * q / b)) / 5
        for p in range(a)
        for q in range(b)
        if p or q
    ]
    return 1 - max(map(abs, values))


# The left column is built here, the right is written down from the eigenvalues of circulant and
# product graphs; the decimals are those of the method reference.
@pytest.mark.parametrize(
    ("topology", "gap"),
    [
        *[(Ring(n), 1 - max(map(abs, ring_eigenvalues(n)))) for n in (3, 4, 5, 8, 16, 32, 33)],
        *[
            (Ring(n, weights=LazyMetropolis()), (1 - math.cos(2 * math.pi / n)) / 2)
            for n in (3, 8, 17)
        ],
        *[(Path(n), 1 - (1 + 2 * math.cos(math.pi / n)) / 3) for n in (3, 5, 8)],
        *[(DirectedRing(n), 1 - math.cos(math.pi / n)) for n in (3, 8, 17)],
        *[(Torus(a * b, rows=a), torus_gap(a, b)) for a, b in ((3, 3), (4, 4), (3, 5), (8, 8))],
        *[(Hypercube(2**k), 2 / (k + 1)) for k in (2, 3, 4, 5)],
        *[(Star(n), 1 / n) for n in (4, 5, 10)],
        *[(Complete(n), 1.0) for n in (2, 5, 10)],
        *[(ExponentialGraph(n), 2 / (1 + math.ceil(math.log2(n)))) for n in (4, 6, 8, 12, 16, 32)],
        *[(OnePeerExponential(n), 1 - math.cos(math.pi / n)) for n in (4, 6, 16)],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_the_gap_is_that_of_the_closed_form(topology, gap):
    assert spectral_gap(topology.matrix(0)) == pytest.approx(gap, abs=1e-12)


@pytest.mark.parametrize(
    ("topology", "published"),
    [
        (Ring(8), 0.195262),
        (Ring(32), 0.012810),
        (Torus(15), 0.276393),
        (Torus(64), 0.117157),
        (Path(5), 0.127322),
        (ExponentialGraph(32), 0.333333),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_the_gap_is_that_of_the_method_reference(topology, published):
    assert spectral_gap(topology.matrix(0)) == pytest.approx(published, abs=1e-6)


def test_all_eigenvalues_of_the_hypercube_are_those_of_its_closed_form():
    values = np.linalg.eigvalsh(Hypercube(32).matrix(0).toarray())
    expected = [1 - 2 * j / 6 for j in range(6) for _ in range(math.comb(5, j))]
    np.testing.assert_allclose(values, sorted(expected), atol=1e-12)


def test_all_eigenvalues_of_the_star_are_those_of_its_closed_form():
    values = np.linalg.eigvalsh(Star(9).matrix(0).toarray())
    np.testing.assert_allclose(values, sorted([0, *[1 - 1 / 9] * 7, 1]), atol=1e-12)


def test_the_gap_of_the_ring_falls_with_the_square_of_its_length():
    gap = spectral_gap(Ring(5000).matrix(0))
    assert gap == pytest.approx(4 * math.pi**2 / (3 * 5000**2), rel=1e-6)


def test_a_random_regular_graph_mixes_as_fast_as_friedman_says():
    k = 8
    gap = spectral_gap(RandomRegular(2000, k=k).matrix(0))
    assert gap == pytest.approx(1 - (1 + 2 * math.sqrt(k - 1)) / (k + 1), abs=0.01)


@pytest.mark.parametrize("n", [2, 4, 8, 16, 64])
def test_one_peer_exponential_is_exact_after_log2_n_rounds(n):
    topology = OnePeerExponential(n)
    assert topology.period == math.log2(n)
    assert rounds_to_consensus(topology) == topology.period


def test_one_peer_exponential_is_exact_in_whatever_order():
    topology = OnePeerExponential(16)
    product = np.eye(16)
    for t in (2, 0, 3, 1):
        product = topology.matrix(t) @ product
    np.testing.assert_allclose(product, 1 / 16, atol=1e-15)


@pytest.mark.parametrize(("n", "farthest"), [(6, 1 / 12), (12, 1 / 24)])
def test_one_peer_exponential_is_not_exact_for_other_n(n, farthest):
    topology = OnePeerExponential(n)
    product = np.eye(n)
    for t in range(topology.period):
        product = topology.matrix(t) @ product
    assert np.abs(product - 1 / n).max() == pytest.approx(farthest, abs=1e-12)
    assert rounds_to_consensus(topology, 3 * topology.period) is None


def test_static_exponential_sends_powers_of_two_ahead():
    W = ExponentialGraph(6).matrix(0)
    assert set(W[[0]].indices.tolist()) == {0, 5, 4, 2}  # 5 + 1, 4 + 2 and 2 + 4 are 0 modulo 6
    np.testing.assert_allclose(W.data, 1 / 4)


def test_random_matchings_pair_everyone_once():
    for n in (10, 11):
        topology = RandomMatching(n)
        for t in range(20):
            degrees = [degree for _, degree in topology.graph(t).degree]
            assert sorted(degrees) == [0] * (n % 2) + [1] * (n - n % 2)


def test_random_pairs_are_equally_likely():
    topology = RandomMatching(6)
    count = sum(topology.adjacency(t).toarray().astype(int) for t in range(3000))
    # A given pair meets with probability 1/5: 600 of 3000, with a deviation of 22.
    assert np.abs(count[~np.eye(6, dtype=bool)] - 600).max() < 5 * 22


def test_pushes_go_to_k_others_and_leave_out_as_many_as_they_should():
    n, k, rounds = 16, 4, 2000
    topology = RandomPush(n, k=k)
    heard = np.array([np.diff(topology.adjacency(t).indptr) for t in range(rounds)])
    sent = [degree for _, degree in topology.graph(0).out_degree]
    assert sent == [k] * n
    # 0.009539 for n = 16 and k = 4; events of one round are nearly independent.
    expected = (1 - k / (n - 1)) ** (n - 1)
    deviation = math.sqrt(expected / heard.size)
    assert abs((heard == 0).mean() - expected) < 5 * deviation


def test_pushes_with_averaging_receivers_are_el_local():
    W = RandomPush(16, k=4, weights=NeighbourAverage()).matrix(0).toarray()
    heard = (W > 0).sum(axis=1) - 1
    for i in range(16):
        np.testing.assert_allclose(W[i][W[i] > 0], 1 / (1 + heard[i]))
    assert not np.allclose(W.sum(axis=0), 1)


@pytest.mark.parametrize("directed", [False, True])
def test_erdos_renyi_has_edges_with_probability_p(directed):
    n, p = 60, 0.2
    weights = {"weights": PushSum()} if directed else {}
    count = [
        ErdosRenyi(n, seed=s, redraw=True, p=p, directed=directed, **weights).graph(0).size()
        for s in range(30)
    ]
    pairs = n * (n - 1) / (1 if directed else 2)
    deviation = math.sqrt(pairs * p * (1 - p) / 30)
    assert abs(np.mean(count) - pairs * p) < 5 * deviation


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_random_regular_graphs_are_regular(k):
    graph = RandomRegular(8, k=k, redraw=True).graph(5)
    assert [degree for _, degree in graph.degree] == [k] * 8


def test_graphs_that_stay_are_connected_even_if_few_are():
    assert nx.is_connected(ErdosRenyi(20, p=0.12).graph(0))
    assert nx.is_connected(RandomRegular(20, k=2).graph(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ring(2), "num_nodes is 2; it must be a whole number, at least 3"),
        (lambda: Torus(4), "num_nodes is 4; it must be a whole number, at least 9"),
        (lambda: Torus(14), "both at least 3: leave both null, and take 15 nodes"),
        (lambda: Torus(13), "take 12 nodes"),
        (lambda: Torus(16, rows=3, cols=5), "num_nodes is 16, rows 3, cols 5"),
        (lambda: Torus(16, rows=2, cols=8), "rows is 2; it must be a whole number, at least 3"),
        (lambda: Torus(16, rows=5), "rows 5, cols None"),
        (lambda: Hypercube(12), "num_nodes is 12; it must be a power of 2: take 8 or 16"),
        (lambda: ErdosRenyi(9, p=1.5), r"p is 1.5; it must be in \[0, 1\]"),
        (lambda: ErdosRenyi(9, p=0.0), "p is 0, which gives no edges"),
        (lambda: ErdosRenyi(100, p=0.001).matrix(0), r"p is 0.001; raise it above .* = 0.046"),
        (lambda: WattsStrogatz(9, k=3), "k is 3, of 9 nodes; it must be even"),
        (lambda: WattsStrogatz(9, k=10), "take an even k from 2 to 8"),
        (lambda: WattsStrogatz(9, p=-0.1), "p is -0.1"),
        (lambda: RandomRegular(9, k=3), "take an even k, or 10 nodes"),
        (lambda: RandomRegular(9, k=9), "k is 9, of 9 nodes; it must be less"),
        (lambda: RandomRegular(8, k=0), "k is 0; it must be a whole number, at least 1"),
        (lambda: RandomRegular(8, k=1), "k is 1, which connects pairs but not 8 nodes"),
        (lambda: RandomPush(8, k=8), "k is 8, of 8 nodes; it must be less"),
        (lambda: BaseGraph(4, k=4), "k is 4, of 4 nodes; it must be less"),
        (lambda: consensus_rate(RandomMatching(4)), "has no period: say over how many rounds"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_with_a_remedy(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_ten_thousand_nodes_need_memory_for_their_edges_alone():
    n = 10_000
    for topology in (
        Ring(n),
        Torus(n),
        ExponentialGraph(n),
        OnePeerExponential(n),
        BaseGraph(n, k=2),
        RandomRegular(n),
        WattsStrogatz(n),
        RandomMatching(n),
        Star(n),
    ):
        W = topology.matrix(0)
        assert W.nnz <= 15 * n + n
        assert W.data.nbytes + W.indices.nbytes < 3e6
