"""Rates of participation that go with labels."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fl.data import load_digits, participation_rates
from fl.data.loading import deal, load, loading_once
from fl.data.partition import dirichlet, pathological
from fl.errors import ConfigError


def rates(rule, n=30, **more):
    deal = partial(rule, num_partitions=n, seed=0, **more.pop("deal", {}))
    return participation_rates(partial(load_digits, 0.2), deal, num_clients=n, seed=3, **more)


def test_rates_lie_between_their_bounds_and_depend_on_the_seed_alone():
    p = rates(dirichlet, deal={"alpha": 0.1, "min_partition_size": 0})
    assert p.shape == (30,)
    assert p.min() == 0.02
    assert p.max() <= 1.0
    np.testing.assert_array_equal(p, rates(dirichlet, deal={"alpha": 0.1, "min_partition_size": 0}))


def test_clients_of_one_label_have_its_rate():
    one = {"num_classes_per_partition": 1}
    p = rates(pathological, deal=one, concentration=1.0, least=1e-6)
    # With one label each, client n has p = mean L r of its label, whatever its examples.
    assert len(np.unique(np.round(p, 9))) <= 10
    # The ten labels' rates sum to mean L.
    assert np.unique(np.round(p, 9)).sum() == pytest.approx(1.0, abs=1e-6)


def test_even_favour_gives_everybody_the_mean():
    p = rates(dirichlet, deal={"alpha": 0.5}, concentration=1e7)
    np.testing.assert_allclose(p, 0.1, rtol=1e-2)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"mean": 0.0}, "mean is 0"),
        ({"least": 2.0}, "least is 2"),
        ({"concentration": 0.0}, "conc"),
    ],
)
def test_what_cannot_be_is_refused(more, key):
    with pytest.raises(ConfigError, match=key):
        rates(dirichlet, deal={"alpha": 0.5}, **more)


def test_data_is_loaded_and_dealt_once_with_the_run_and_other_rates():
    calls = []

    def data():
        calls.append("data")
        return load_digits(0.2)

    def partition(source, alpha):
        calls.append(f"partition {alpha}")
        return dirichlet(source, num_partitions=10, seed=0, alpha=alpha)

    with loading_once():
        for alpha in (0.1, 0.1, 0.5):
            dealt = deal(partial(partition, alpha=alpha), load(data))
            for _ in range(2):
                rule = partial(partition, alpha=alpha)
                participation_rates(data, rule, num_clients=10, seed=1)
            with loading_once():
                assert deal(partial(partition, alpha=alpha), load(data)) is dealt
    assert calls == ["data", "partition 0.1", "partition 0.5"]
    participation_rates(data, partial(partition, alpha=0.5), num_clients=10, seed=1)
    assert calls[3:] == ["data", "partition 0.5"]
