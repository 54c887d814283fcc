"""Games whose solution is known: quadratic ones, and robust least squares.

Recipes of Zhang, Choudhury, Stich, Loizou, arXiv:2306.05100 (ICLR 2024), section 4, as in the
authors' code (isayantan/ProxSkipVIP). An example is a sample's part of f, for `fl.models.Game`;
held out is nothing, so a model is evaluated on all samples.

Departures from the authors' code:
    1. The random stream is this project's.
    2. Orthogonal factors are those of a QR decomposition with signs that make them uniform, where
       the authors take the eigenvectors of a random Gram matrix.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, not_negative, positive
from fl.data.federated import Examples, Partitions, Source
from fl.errors import ConfigError
from fl.randomness import generator

Matrix = NDArray[np.float64]


def load_quadratic_game(
    num_players: int = 20,
    samples: int = 100,
    dimension: int = 10,
    mu: float = 0.01,
    L: float = 1.0,
    condition: float = 1.0,
    coupling: float = 1.0,
    seed: int = 0,
) -> Source:
    """Draws strongly monotone quadratic games, `samples` for each of the clients.

        f(x_1, x_2) = x_1'A x_1 / 2 + x_1'B x_2 - x_2'C x_2 / 2 + a'x_1 - c'x_2
        A, C = Q diag(U(mu, L)) Q',    B = Q diag(U(0, coupling L)) Q',    a, c ~ N(0, I)

    with an orthogonal Q of its own for every matrix. The mean of many such matrices is close to a
    multiple of the identity. With `condition` kappa above 1, coordinate j of both players is
    multiplied by s_j before it goes into f, s_j from 1 to kappa^-1/2 in geometric progression: by
    that the mean's condition number becomes about kappa times as large.

    Args:
        num_players: clients.
        samples: of each client.
        dimension: of either player.
        mu: least eigenvalue of A and C, above 0.
        L: largest eigenvalue, at least mu.
        condition: kappa, at least 1.
        coupling: how strong B is beside A and C; 0 makes two minimisations of it.
        seed: of the data. Not the run's: runs with different seeds play the same game.

    Raises:
        ConfigError: an argument is out of its range.
    """
    at_least("num_players", num_players, 1)
    at_least("samples", samples, 1)
    at_least("dimension", dimension, 1)
    positive("mu", mu)
    positive("L", L)
    not_negative("coupling", coupling)
    if mu > L:
        raise ConfigError(f"L is {L}; it must be at least mu, which is {mu}")
    if not 1 <= condition < np.inf:
        raise ConfigError(f"condition is {condition}; it must be finite and at least 1")
    rng = generator(seed, "quadratic-game")
    n, d = num_players * samples, dimension
    A, C = (_symmetric(rng, n, d, mu, L) for _ in range(2))
    B = _symmetric(rng, n, d, 0.0, coupling * L)
    a, c = rng.standard_normal((2, n, d))
    s = np.tile(condition ** (-np.arange(d) / (2 * max(d - 1, 1))), 2)
    x = np.zeros((n, 2 * d + 1, 2 * d))
    x[:, :d, :d], x[:, :d, d:], x[:, d:-1, :d], x[:, d:-1, d:] = A, B, B.swapaxes(1, 2), -C
    x[:, -1] = np.concatenate([a, -c], axis=1)
    x[:, :-1] *= s[:, None]
    x *= s
    return _source("quadratic_game", x, num_players)


def load_robust_least_squares(
    num_players: int = 20, rows: int = 10, dimension: int = 10, noise: float = 0.01, seed: int = 0
) -> Source:
    """Draws robust least squares, `rows` rows for each of the clients.

        A ~ N(0, 1)^(m x dimension),    w ~ N(0, I),    y_0 = A w + noise N(0, I)

    m = `num_players` times `rows`. An example is (A_r, r-th unit vector, (y_0)_r).

    Args:
        num_players: clients.
        rows: of each client.
        dimension: of w.
        noise: standard deviation, at least 0.
        seed: of the data. Not the run's.

    Raises:
        ConfigError: an argument is out of its range.
    """
    at_least("num_players", num_players, 1)
    at_least("rows", rows, 1)
    at_least("dimension", dimension, 1)
    not_negative("noise", noise)
    rng, m = generator(seed, "robust-least-squares"), num_players * rows
    A = rng.standard_normal((m, dimension))
    y0 = A @ rng.standard_normal(dimension) + noise * rng.standard_normal(m)
    x = np.concatenate([A, np.eye(m), y0[:, None]], axis=1)
    return _source("robust_least_squares", x, num_players)


def _symmetric(rng: np.random.Generator, n: int, d: int, low: float, high: float) -> Matrix:
    """Returns Q diag(U(low, high)) Q', shape (n, d, d)."""
    Q, R = np.linalg.qr(rng.standard_normal((n, d, d)))
    Q = Q * np.sign(np.einsum("nii->ni", R))[:, None, :]
    made: Matrix = (Q * rng.uniform(low, high, (n, 1, d))) @ Q.swapaxes(1, 2)
    return made


def _source(name: str, x: Matrix, num_players: int) -> Source:
    """Returns samples that are dealt to clients in equal runs."""
    examples = Examples(x.astype(np.float32), np.zeros(len(x), np.int64))
    partitions = Partitions.contiguous([len(x) // num_players] * num_players)
    return Source(
        name=name,
        train=examples,
        test=examples,
        num_classes=0,
        input_shape=x.shape[1:],
        task="game",
        natural=partitions,
    )
