"""Data with clusters: images in several orientations, mixtures of them, and mixtures that drift."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fl.data import Drift, Examples, Mixtures, Source, federate, load_rotated_digits, rotated
from fl.data.drift import DRIFT_BEGINS, counts_of
from fl.data.partition import clusters
from fl.errors import ConfigError
from fl.execution.virtual_time import EPOCH


def images(n=40, m=8):
    rng = np.random.default_rng(0)
    made = [
        Examples(rng.integers(0, 255, (k, 1, 4, 4)).astype(np.uint8), np.arange(k) % 3)
        for k in (n, m)
    ]
    return Source("images", *made, num_classes=3, input_shape=(1, 4, 4))


ROTATED = partial(rotated, images(), (0, 90, 180, 270))


def test_every_image_is_once_in_each_orientation():
    plain, turned = images(), ROTATED()
    assert len(turned.train) == 160
    np.testing.assert_array_equal(turned.clusters, np.repeat([0, 1, 2, 3], 40))
    np.testing.assert_array_equal(turned.test_clusters, np.repeat([0, 1, 2, 3], 8))
    x = turned.train.x.reshape(4, 40, 1, 4, 4)
    np.testing.assert_array_equal(x[0], plain.train.x)
    for b in range(40):  # a quarter turn against the clock takes the last column to the first row
        np.testing.assert_array_equal(x[1, b, 0][0], plain.train.x[b, 0][:, -1])
        np.testing.assert_array_equal(x[2, b, 0], plain.train.x[b, 0][::-1, ::-1])
        np.testing.assert_array_equal(x[3, b, 0][0], plain.train.x[b, 0][::-1, 0])
    np.testing.assert_array_equal(turned.train.y, np.tile(plain.train.y, 4))


@pytest.mark.parametrize("angles", [[], [45], [0, 0], [0, 360]])
def test_other_angles_are_refused(angles):
    with pytest.raises(ConfigError, match="angles"):
        load_rotated_digits(angles=angles)


def test_mixtures_that_move_faster_than_times_are_told_are_refused():
    clusters(ROTATED(), 4, 0, drift_s=0.001)
    with pytest.raises(ConfigError, match="drift_s is 1e-300"):
        clusters(ROTATED(), 4, 0, drift_s=1e-300)


def test_pure_clients_have_all_examples_once_and_of_one_cluster_each():
    source = ROTATED()
    split = clusters(source, 8, seed=0)
    assert sorted(split.train.indices) == list(range(160))
    for p in range(8):
        assert set(source.clusters[split.train[p]]) == {p % 4}
        assert set(source.test_clusters[split.test[p]]) == {p % 4}


def test_mixtures_are_dirichlet_draws_rounded_and_all_clients_have_as_many():
    source = ROTATED()
    data = federate(ROTATED, lambda s: clusters(s, 5, 1, alpha=0.5, partition_size=30))
    for p in range(5):
        drawn = Mixtures(4, 0.5, 1).drawn(p, 0)
        counts = np.bincount(source.clusters[data.partitions[p]], minlength=4)
        assert counts.sum() == 30
        assert np.abs(counts - 30 * drawn).max() < 1
        np.testing.assert_array_equal(data.mixture(p, 0.0), counts / 30)
    other = federate(ROTATED, lambda s: clusters(s, 5, 2, alpha=0.5, partition_size=30))
    assert (other.mixture(0, 0.0) != data.mixture(0, 0.0)).any()


def test_counts_add_up_and_are_within_one_of_the_shares():
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 100):
        for _ in range(20):
            shares = rng.dirichlet([0.3] * 5)
            counts = counts_of(shares, n)
            assert counts.sum() == n
            assert np.abs(counts - n * shares).max() < 1
    np.testing.assert_array_equal(counts_of(np.array([0.25] * 4), 8), [2] * 4)


def drifting(alpha, period=10.0):
    return federate(
        ROTATED,
        lambda s: clusters(s, 4, 3, alpha=alpha, partition_size=20, drift_s=period),
    )


def test_drift_moves_linearly_between_draws_and_keeps_the_images():
    data = drifting(0.5)
    u = data.drift.shares
    np.testing.assert_allclose(u(1, 15.0), (u(1, 10.0) + u(1, 20.0)) / 2)
    np.testing.assert_allclose(u(1, 10.0), Mixtures(4, 0.5, 3).drawn(1, 1))
    first = data.rows(1, 0.0)
    for t in (3.0, 10.0, 127.5):
        rows = data.rows(1, t)
        np.testing.assert_array_equal(rows % 40, first % 40)
        counts = np.bincount(rows // 40, minlength=4)
        assert np.abs(counts - 20 * u(1, t)).max() < 1
        np.testing.assert_array_equal(data.mixture(1, t), counts / 20)


def test_without_mixtures_a_client_goes_from_cluster_to_cluster():
    data = drifting(None)
    for turn in range(5):
        np.testing.assert_array_equal(data.mixture(2, 10.0 * turn), np.eye(4)[(2 + turn) % 4])
    np.testing.assert_array_equal(data.mixture(2, 5.0), [0, 0, 0.5, 0.5])


def test_held_out_examples_drift_alike():
    data = drifting(None)
    rows = data.test_rows(0, 10.0)
    np.testing.assert_array_equal(np.unique(rows // 8), [1])


def test_without_drift_rows_stay():
    data = federate(ROTATED, lambda s: clusters(s, 4, 0))
    np.testing.assert_array_equal(data.rows(1, 1e6), data.partitions[1])
    assert data.drift is None


def test_drift_and_its_period_are_part_of_the_fingerprint():
    prints = {drifting(0.5).fingerprint(), drifting(0.5, 11.0).fingerprint()}
    prints.add(federate(ROTATED, lambda s: clusters(s, 4, 3, 0.5, 20)).fingerprint())
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("key", "value"), [("alpha", 0.0), ("drift_s", -1.0), ("partition_size", 0), ("test_size", 0)]
)
def test_arguments_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key}.*{value}"):
        clusters(ROTATED(), 4, 0, **{key: value})


def test_data_without_clusters_are_refused():
    with pytest.raises(ConfigError, match="images"):
        clusters(images(), 4, 0)


def test_drift_wants_each_example_in_every_cluster():
    source = ROTATED()
    shuffled = np.random.default_rng(0).permutation(source.clusters)
    with pytest.raises(ConfigError, match="drift_s"):
        clusters(type(source)(**{**vars(source), "clusters": shuffled}), 4, 0, drift_s=5.0)


def test_time_counts_from_virtual_time_0_of_a_run_without_a_date():
    assert DRIFT_BEGINS == EPOCH


def test_a_drift_is_a_function_of_seed_client_and_time():
    one, same = (Drift(Mixtures(4, 0.3, 5), 7.0) for _ in range(2))
    for t in (100.0, 3.0, 100.0):
        np.testing.assert_array_equal(one.shares(2, t), same.shares(2, t))
