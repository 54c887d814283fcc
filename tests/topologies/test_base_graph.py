"""Base-(k+1) graphs: exact for every n, as short as published, as in the authors' example."""

import math

import numpy as np
import pytest

from fl.topologies import BaseGraph, rounds_to_consensus


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_the_product_is_the_exact_mean_for_every_number_of_nodes(k):
    for n in range(max(2, k + 1), 48):
        topology = BaseGraph(n, k)
        assert rounds_to_consensus(topology) == topology.period, n


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_no_node_has_more_than_k_neighbours(k):
    for n in range(max(2, k + 1), 48):
        topology = BaseGraph(n, k)
        for t in range(topology.period):
            assert np.diff(topology.adjacency(t).indptr).max() <= k


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_the_length_is_within_the_bound_of_the_paper(k):
    for n in range(max(2, k + 1), 300):
        assert BaseGraph(n, k).period <= 2 * math.log(n, k + 1) + 2


# Counted by running the authors' code; 22 nodes with k = 4 take the simple graph, which is shorter.
LENGTHS = {
    1: {5: 5, 6: 4, 7: 5, 10: 6, 12: 5, 16: 4, 25: 9, 30: 8},
    2: {5: 3, 6: 2, 7: 4, 10: 4, 12: 3, 16: 4, 25: 6, 30: 5},
    4: {5: 1, 6: 2, 7: 3, 10: 2, 12: 2, 16: 2, 22: 4, 25: 2, 30: 3},
}


@pytest.mark.parametrize("k", LENGTHS)
def test_the_length_is_that_of_the_authors_code(k):
    assert {n: BaseGraph(n, k).period for n in LENGTHS[k]} == LENGTHS[k]


def test_five_nodes_go_through_the_rounds_of_the_papers_example():
    def pairs(*links):
        W = np.eye(5)
        for i, j, w in links:
            W[i, j] = W[j, i] = w
            W[i, i] = W[j, j] = 1 - w
        return W

    first, second = pairs((0, 1, 0.5), (2, 3, 0.5)), pairs((0, 2, 0.5), (1, 3, 0.5))
    third = pairs((0, 1, 0.5), (3, 4, 0.8))
    topology = BaseGraph(5)
    for t, W in enumerate([first, second, third, first, second]):
        np.testing.assert_allclose(topology.matrix(t).toarray(), W, atol=1e-15)


def test_powers_of_two_are_a_one_peer_hypercube():
    topology = BaseGraph(16)
    assert topology.period == 4
    for t in range(4):
        expected = (np.eye(16) + np.eye(16)[np.arange(16) ^ (1 << t)]) / 2
        np.testing.assert_allclose(topology.matrix(t).toarray(), expected)


def test_the_largest_degree_allowed_is_the_complete_graph():
    np.testing.assert_allclose(BaseGraph(7, 6).matrix(0).toarray(), 1 / 7)
    assert BaseGraph(7, 6).period == 1
