"""Quadratic games and robust least squares (arXiv:2306.05100)."""

from __future__ import annotations

import numpy as np
import pytest

from fl.data import load_quadratic_game, load_robust_least_squares
from fl.errors import ConfigError

D = 10


def blocks(**arguments):
    """H of every sample, shape (n, 2 D, 2 D), and e."""
    x = load_quadratic_game(**{"num_players": 4, "samples": 25, **arguments}).train.x
    return x[:, :-1].astype(float), x[:, -1].astype(float)


def test_every_players_own_matrices_have_the_spectrum_that_is_asked_for():
    H, e = blocks(mu=0.2, L=0.7)
    for own in (H[:, :D, :D], -H[:, D:, D:]):
        eigenvalues = np.linalg.eigvalsh(own)
        assert eigenvalues.min() > 0.2 - 1e-6
        assert eigenvalues.max() < 0.7 + 1e-6
        assert eigenvalues.mean() == pytest.approx(0.45, abs=0.02)
    between = np.linalg.eigvalsh(H[:, :D, D:])
    assert between.min() > -1e-6
    assert between.max() < 0.7 + 1e-6
    np.testing.assert_allclose(H, H.swapaxes(1, 2), atol=1e-6)
    assert e.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kappa", [10.0, 1000.0])
def test_the_mean_is_conditioned_about_as_it_is_asked_for(kappa):
    plain, scaled = (np.mean(blocks(condition=c)[0], axis=0) for c in (1.0, kappa))
    of = [np.linalg.cond(H[:D, :D]) for H in (plain, scaled)]
    assert of[0] < 2
    assert kappa / 2 < of[1] / of[0] < 2 * kappa


def test_scaling_is_a_change_of_units():
    (H, e), (scaled, moved) = blocks(), blocks(condition=100.0)
    s = np.tile(100.0 ** -np.linspace(0, 0.5, D), 2)
    np.testing.assert_allclose(scaled, s[:, None] * H * s, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(moved, s * e, rtol=1e-5, atol=1e-7)


def test_without_coupling_each_player_is_alone():
    H, _ = blocks(coupling=0.0)
    np.testing.assert_allclose(H[:, :D, D:], 0, atol=1e-12)


def test_orthogonal_factors_point_everywhere():
    H, _ = blocks(samples=200, mu=0.01)
    np.testing.assert_allclose(H[:, :D, :D].mean(axis=0), 0.505 * np.eye(D), atol=0.05)


def test_rows_of_robust_least_squares_are_of_one_problem():
    source = load_robust_least_squares(5, rows=3, dimension=4, noise=0.0)
    x = source.train.x
    A, unit, y0 = x[:, :4], x[:, 4:-1], x[:, -1]
    np.testing.assert_array_equal(unit, np.eye(15))
    w = np.linalg.lstsq(A, y0, rcond=None)[0]
    np.testing.assert_allclose(A @ w, y0, atol=1e-5)
    assert source.natural.sizes.tolist() == [3] * 5


def test_the_data_are_a_function_of_their_seed():
    first, again, other = (load_quadratic_game(2, 3, seed=s).train.x for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"num_players": 0}, {"samples": 0}, {"dimension": 0}),
        *({"mu": 0.0}, {"L": 0.001}, {"condition": 0.5}, {"coupling": -1.0}),
    ],
)
def test_a_game_that_cannot_be_drawn_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        load_quadratic_game(**wrong)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"dimension": 0}, {"noise": -1.0}])
def test_least_squares_that_cannot_be_drawn_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        load_robust_least_squares(**wrong)
