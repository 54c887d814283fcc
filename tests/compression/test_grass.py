"""Grass: which rows workers agree on, for how long, and what becomes of their mean."""

import numpy as np
import pytest

from fl.compression import Grass, Shapes
from fl.errors import ConfigError

SHAPES = Shapes(((6, 4), (5,), (3, 2)))  # with r = 3 the last matrix goes as it is
REST = 5 + 6


def of_workers(seed=0, workers=3):
    return np.random.default_rng(seed).normal(size=(workers, SHAPES.size)).astype(np.float32)


def test_all_take_the_rows_whose_squared_norms_have_the_largest_sums_and_keep_them_k_steps():
    grass = Grass(rank=3, every=2)
    state = grass.init(SHAPES)
    rows = None
    for step in range(4):
        x = of_workers(step)
        mean, sizes, state = grass.compress_mean(x, SHAPES, state, [])
        if step % 2 == 0:
            sums = (x[:, :24].reshape(3, 6, 4).astype(float) ** 2).sum(axis=(0, 2))
            rows = np.sort(np.argsort(sums)[-3:])
            assert sizes == (4 * 6, 4 * (3 * 4 + REST))
        else:
            assert sizes == (4 * (3 * 4 + REST),)
        expected = np.zeros((6, 4))
        expected[rows] = x[:, :24].mean(axis=0).reshape(6, 4)[rows]
        np.testing.assert_allclose(mean[:24].reshape(6, 4), expected, atol=1e-6)
        np.testing.assert_allclose(mean[24:], x[:, 24:].mean(axis=0), atol=1e-6)


def test_sampled_rows_of_the_mean_are_unbiased_with_the_variance_of_the_shared_choice():
    """E |C - G|^2 = sum_j |G_j|^2 / (r q_j) - |G|^2 / r, with q by the sums of all workers."""
    grass, x = Grass(rank=2, selection="sampled"), of_workers()
    shapes, x = Shapes(((6, 4),)), x[:, :24]
    state, got = grass.init(shapes), []
    for _ in range(1000):
        made, _, state = grass.compress_mean(x, shapes, state, [])
        got.append(made)
    mean = x.mean(axis=0, dtype=np.float64)
    errors = np.array(got) - mean
    spread = errors.std(axis=0) / len(got) ** 0.5
    assert (np.abs(errors.mean(axis=0)) < 5 * spread).all()
    of_mean = (mean.reshape(6, 4) ** 2).sum(axis=1)
    q = (x.reshape(3, 6, 4).astype(float) ** 2).sum(axis=(0, 2))
    q /= q.sum()
    expected = (of_mean / q).sum() / 2 - of_mean.sum() / 2
    assert (errors**2).sum(axis=1).mean() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"every": 0}, "every is 0"),
        ({"selection": "rows"}, "selection is 'rows'; it must be one of top, sampled"),
    ],
)
def test_arguments_out_of_range_are_refused(of, why):
    with pytest.raises(ConfigError, match=why):
        Grass(**of)
