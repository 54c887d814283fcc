"""Rounds of gossip against dense products, and the matrices of rounds with nodes away."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from topology_members import CASES, built

from fl.errors import ConfigError
from fl.topologies import (
    Complete,
    ErdosRenyi,
    Hypercube,
    NeighbourAverage,
    RandomMatching,
    RandomPush,
    Ring,
    Star,
    is_doubly_stochastic,
    mix,
    renormalised,
)
from fl.topologies.mixing import mix_rows


@pytest.mark.parametrize(("name", "n"), CASES)
def test_a_round_is_the_product_with_the_matrix(name, n):
    W = built(name, n).matrix(1)
    X = np.random.default_rng(0).standard_normal((n, 37))
    before = X.copy()
    np.testing.assert_allclose(mix(W, X), W.toarray() @ X, rtol=0, atol=1e-14)
    single = X.astype(np.float32)
    mixed = mix(W, single)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, W.toarray() @ X, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("topology", [Ring(9), Complete(9), Star(9)])
def test_some_rows_need_the_models_of_their_neighbours_alone(topology):
    X = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    W = topology.matrix(0).astype(np.float32)
    nodes = [7, 2, 0]
    heard = set(W[nodes].indices.tolist())
    models = [X[j] if j in heard else np.empty(0, np.float32) for j in range(9)]
    some = mix_rows(W[nodes], models, np.full((3, 5), np.nan, np.float32))
    np.testing.assert_allclose(some, (W @ X)[nodes], rtol=0, atol=1e-6)


@pytest.mark.parametrize("topology", [Ring(9), Complete(9), Star(9)])
def test_the_result_goes_where_it_is_wanted(topology):
    X = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    out = np.full_like(X, np.nan)
    W = topology.matrix(0)
    assert mix(W, X, out) is out
    np.testing.assert_array_equal(out, mix(W, X))


@pytest.mark.parametrize("topology", [Ring(16), Star(16), RandomPush(16, k=3)])
def test_in_single_precision_the_mean_hardly_moves(topology):
    X = 1 + np.random.default_rng(0).standard_normal((16, 50)).astype(np.float32)
    mean = X.mean(axis=0, dtype=np.float64)
    for t in range(500):
        X = mix(topology.matrix(t), X)
    # 500 rounds of at most half a unit in the last place of numbers up to 2.
    assert np.abs(X.mean(axis=0, dtype=np.float64) - mean).max() < 500 * 2.0**-24


@pytest.mark.parametrize("n", [5, 40])
def test_a_model_that_is_not_finite_reaches_its_neighbours_alone(n):
    X = np.zeros((n, 3), dtype=np.float32)
    X[2] = np.nan
    reached = np.isnan(mix(Ring(n).matrix(0), X)).all(axis=1)
    assert np.flatnonzero(reached).tolist() == [1, 2, 3]


def test_a_node_that_is_given_nothing_has_nothing():
    W = csr_array(np.array([[0.0, 0.0], [0.5, 0.5]]))
    out = np.full((2, 3), np.nan)
    np.testing.assert_array_equal(mix(W, np.ones((2, 3)), out), [[0] * 3, [1] * 3])


@pytest.mark.parametrize(
    ("X", "out", "words"),
    [
        (np.ones((4, 2)), None, r"shape \(4, 2\) .* they must have shape \(5, d\)"),
        (np.ones(5), None, r"shape \(5,\)"),
        (np.ones((5, 2), dtype=np.float16), None, "type float16"),
        (np.ones((5, 2), dtype=int), None, "type int64"),
        (np.ones((5, 2)), np.ones((5, 3)), r"out has shape \(5, 3\)"),
        (np.ones((5, 2)), np.ones((5, 2), dtype=np.float32), "type float32; it must be another"),
        (np.ones((5, 2)), np.ones((2, 5)).T, "contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(X, out, words):
    with pytest.raises(ConfigError, match=words):
        mix(Ring(5).matrix(0), X, out)


def test_models_are_not_mixed_in_their_place():
    X = np.ones((5, 2))
    with pytest.raises(ConfigError, match="it must be another array"):
        mix(Ring(5).matrix(0), X, X)


AWAY = np.array([True, True, False, True, True, False, True, True])


def test_without_absent_nodes_a_symmetric_matrix_stays_doubly_stochastic():
    for topology in (Ring(8), ErdosRenyi(8, p=0.6), Hypercube(8), RandomMatching(8)):
        W = topology.matrix(0)
        without = renormalised(W, AWAY)
        dense = without.toarray()
        np.testing.assert_allclose(dense, dense.T, atol=1e-15)
        assert is_doubly_stochastic(without)
        np.testing.assert_allclose(dense, renormalised(W, AWAY, keep="columns").toarray())
        np.testing.assert_array_equal(dense[~AWAY], np.eye(8)[~AWAY])  # who is away stays
        here = np.ix_(AWAY, AWAY)
        off = ~np.eye(6, dtype=bool)
        np.testing.assert_array_equal(dense[here][off], W.toarray()[here][off])


def test_a_ring_without_a_node_gives_its_weight_to_the_neighbours_themselves():
    online = np.array([True, False, True, True, True])
    third = 1 / 3
    expected = [
        [2 * third, 0, 0, 0, third],
        [0, 1, 0, 0, 0],
        [0, 0, 2 * third, third, 0],
        [0, 0, third, third, third],
        [third, 0, 0, third, third],
    ]
    without = renormalised(Ring(5).matrix(0), online)
    np.testing.assert_allclose(without.toarray(), expected, atol=1e-15)
    assert without.nnz == 11  # nothing is stored for edges that are gone


def test_without_absent_nodes_senders_keep_what_they_cannot_deliver():
    W = RandomPush(8, k=3).matrix(0)
    without = renormalised(W, AWAY, keep="columns")
    np.testing.assert_allclose(without.sum(axis=0), 1, atol=1e-15)
    x = np.arange(8.0)
    assert (without @ x).sum() == pytest.approx(x.sum())
    np.testing.assert_array_equal((without @ x)[~AWAY], x[~AWAY])


def test_without_absent_nodes_receivers_keep_their_own_model_instead():
    W = RandomPush(8, k=3, weights=NeighbourAverage()).matrix(0)
    without = renormalised(W, AWAY)
    np.testing.assert_allclose(without.sum(axis=1), 1, atol=1e-15)
    assert not np.allclose(without.sum(axis=0), 1)


def test_with_all_nodes_there_nothing_changes():
    W = Ring(8).matrix(0)
    assert renormalised(W, np.ones(8, dtype=bool)) is W


@pytest.mark.parametrize("online", [np.ones(7, dtype=bool), np.ones(8), [0, 3]])
def test_who_is_online_must_be_a_mask(online):
    with pytest.raises(ConfigError, match="it must be boolean, of shape"):
        renormalised(Ring(8).matrix(0), online)
