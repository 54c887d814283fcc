"""Rates of consensus against dense linear algebra."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from fl.errors import ConfigError
from fl.topologies import (
    Complete,
    ErdosRenyi,
    ExponentialGraph,
    Hypercube,
    NeighbourAverage,
    OnePeerExponential,
    PushSum,
    RandomMatching,
    RandomPush,
    Ring,
    Star,
    Torus,
    consensus,
    consensus_rate,
    is_doubly_stochastic,
    rounds_to_consensus,
    spectral_gap,
)

Q3 = np.array([[0.5, 0.5, 0], [0.5, 0.25, 0.25], [0, 0.25, 0.75]])


def test_the_gap_of_a_symmetric_matrix_is_that_of_its_second_largest_eigenvalue():
    for topology in (Ring(11), Star(7), ErdosRenyi(14, seed=2), Hypercube(8)):
        W = topology.matrix(0)
        values = np.sort(np.abs(np.linalg.eigvalsh(W.toarray())))
        assert spectral_gap(W) == pytest.approx(1 - values[-2], abs=1e-12)


def test_the_gap_of_q3_and_of_its_powers():
    W = csr_array(Q3)
    rho = max(abs(np.roots(np.poly(Q3))[1:]))  # 0.683013, and -0.183013
    assert rho == pytest.approx(0.683013, abs=1e-6)
    assert 1 - spectral_gap(W) == pytest.approx(rho, abs=1e-12)
    assert 1 - spectral_gap(csr_array(np.linalg.matrix_power(Q3, 4))) == pytest.approx(
        rho**4, abs=1e-12
    )


def test_a_graph_in_parts_and_no_graph_at_all_have_no_gap():
    parts = np.kron(np.eye(2), np.full((3, 3), 1 / 3))
    assert spectral_gap(csr_array(parts)) == pytest.approx(0, abs=1e-12)
    assert spectral_gap(csr_array(np.eye(5))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "topology", [Torus(600), ExponentialGraph(600), ErdosRenyi(600, p=0.02), RandomMatching(600)]
)
def test_lanczos_and_dense_algebra_find_the_same_gap(topology, monkeypatch):
    W = topology.matrix(0)
    by_lanczos = spectral_gap(W)
    monkeypatch.setattr(consensus, "DENSE", 10_000)
    assert by_lanczos == pytest.approx(spectral_gap(W), abs=1e-9)


def test_a_gap_is_a_bound_on_how_fast_nodes_meet():
    rng = np.random.default_rng(0)
    for topology in (Ring(9), ExponentialGraph(13), Star(5)):
        W = topology.matrix(0)
        for _ in range(20):
            x = rng.standard_normal((topology.num_nodes, 2))
            x -= x.mean(axis=0)
            assert np.linalg.norm(W @ x) <= (1 - spectral_gap(W)) * np.linalg.norm(x) * (1 + 1e-12)


@pytest.mark.parametrize(
    "topology",
    [Star(5, weights=NeighbourAverage()), Star(5, weights=PushSum()), RandomPush(20)],
    ids=["rows", "columns", "push"],
)
def test_no_gap_without_a_doubly_stochastic_matrix(topology):
    assert not is_doubly_stochastic(topology.matrix(0))
    with pytest.raises(ConfigError, match="not doubly stochastic"):
        spectral_gap(topology.matrix(0))


def test_negative_weights_are_not_stochastic():
    assert is_doubly_stochastic(csr_array(Q3))
    assert not is_doubly_stochastic(csr_array([[1.5, -0.5], [-0.5, 1.5]]))


def test_the_rate_of_a_graph_that_stays_is_its_norm():
    assert consensus_rate(Ring(8)) == pytest.approx(1 - 0.195262, abs=1e-6)
    assert consensus_rate(Ring(8), rounds=5) == pytest.approx(consensus_rate(Ring(8)), abs=1e-12)


def test_the_rate_over_a_period_is_that_of_the_product():
    topology = OnePeerExponential(6)
    product = np.eye(6)
    for t in range(3):
        product = topology.matrix(t).toarray() @ product
    rho = np.linalg.svd(product - 1 / 6, compute_uv=False)[0]
    assert 0 < rho < 1
    assert consensus_rate(topology) == pytest.approx(rho ** (1 / 3), abs=1e-12)


def test_the_rate_of_exact_agreement_is_zero():
    assert consensus_rate(OnePeerExponential(8)) == 0
    assert consensus_rate(OnePeerExponential(1024)) == 0  # without dense matrices
    assert consensus_rate(Complete(6)) == 0


def test_rounds_to_consensus_are_counted_to_the_last_that_is_needed():
    assert rounds_to_consensus(Complete(5)) == 1
    assert rounds_to_consensus(Hypercube(4)) is None
    assert rounds_to_consensus(OnePeerExponential(8), rounds=9) == 3
    assert rounds_to_consensus(OnePeerExponential(8), rounds=2) is None
    assert rounds_to_consensus(OnePeerExponential(2048)) == 11  # in two blocks of columns
