"""The ring with the largest smallest edge, against all rings there are."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from many_cases import for_each

from fl.collectives import RingAllReduce, widest_ring
from fl.collectives.ring_order import slowest
from fl.errors import ConfigError


@for_each("m", range(2, 8))
@for_each("kind", ["floats", "ties"])
def test_it_is_the_best_of_all_rings(m, kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rates = rng.random((m, m)) if kind == "floats" else rng.integers(1, 4, (m, m)).astype(float)
        ring = widest_ring(rates)
        assert ring[0] == 0
        assert sorted(ring) == list(range(m))
        best = max(slowest(rates, [0, *others]) for others in permutations(range(1, m)))
        assert slowest(rates, ring) == best


@for_each("m", [13, 20, 40])
def test_a_hidden_ring_of_fast_edges_is_found_or_nearly_beyond_what_is_exact(m):
    # Two continents: any ring crosses twice, and the widest uses the two best crossings.
    rng = np.random.default_rng(m)
    rates = np.where(np.add.outer(range(m), range(m)) % 2, 1.0, 10.0) * rng.uniform(
        0.9, 1.1, (m, m)
    )
    ring = widest_ring(rates)
    assert sorted(ring) == list(range(m))
    assert slowest(rates, ring) >= max(1.0, slowest(rates, list(range(m))))


def test_an_order_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="order is 'best'"):
        RingAllReduce(order="best")
