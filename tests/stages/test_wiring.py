"""Stochastic wiring: who gets how much, how speeds are measured, who joins and who leaves."""

from __future__ import annotations

from collections import Counter
from itertools import count

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.stages import StochasticWiring


def test_peers_of_speeds_1_and_3_get_work_as_1_to_3():
    wiring, ties, given = StochasticWiring(), count(), Counter()
    peers = wiring.join(wiring.join({}, 7, 0.1), 8, 0.2)
    seconds = {7: 0.9, 8: 0.3}
    for _ in range(4000):
        peer, peers = wiring.choose(peers, 1.0, next(ties) % 10 / 10)
        given[peer] += 1
        peers = wiring.measure(peers, peer, 1.0, seconds[peer])
    # Each began with one pass at initial_s = 1 s, which is all that is not in proportion.
    assert given[8] / given[7] == pytest.approx(3, rel=0.002)


def test_the_average_has_no_bias_towards_where_it_begins():
    wiring = StochasticWiring(alpha=0.1)
    peers = wiring.join({}, 0, 0.0)
    assert wiring.seconds(peers[0]) == 1.0
    for _ in range(3):
        peers = wiring.measure(peers, 0, 2.0, 10.0)
        assert wiring.seconds(peers[0]) == pytest.approx(5.0, rel=1e-12)
    peers = wiring.measure(peers, 0, 1.0, 1.0)
    weights = 0.1 * 0.9 ** np.arange(4)
    expected = weights @ [1, 5, 5, 5] / weights.sum()
    assert wiring.seconds(peers[0]) == pytest.approx(expected, rel=1e-12)


def test_a_backward_pass_weighs_as_many_samples_as_it_says():
    wiring = StochasticWiring(initial_s=2.0, backward_size=2.5)
    _, peers = wiring.choose(wiring.join({}, 0, 0.0), wiring.backward_size, 0.5)
    assert peers[0].load == 5.0


def test_a_peer_that_joins_is_tried_at_once_and_gets_no_more_than_its_share():
    wiring = StochasticWiring()
    peers = wiring.join({}, 0, 0.5)
    for _ in range(100):
        _, peers = wiring.choose(peers, 1.0, 0.5)
    peers = wiring.join(peers, 1, 0.1)
    chosen = []
    for _ in range(10):
        peer, peers = wiring.choose(peers, 1.0, 0.5 if len(chosen) % 2 else 0.4)
        chosen.append(peer)
    assert chosen[0] == 1
    assert Counter(chosen) == {0: 5, 1: 5}


def test_what_is_known_of_a_peer_ends_with_its_ban():
    wiring = StochasticWiring()
    peers = wiring.measure(wiring.join(wiring.join({}, 0, 0.0), 1, 0.0), 0, 1.0, 9.0)
    peers = wiring.leave(peers, 0)
    assert wiring.measure(peers, 0, 1.0, 5.0) == peers  # it answers too late
    peers = wiring.join(peers, 0, 0.3)
    assert peers[0].measured == 0
    assert wiring.join(peers, 0, 0.9) is peers


def test_a_stage_without_peers_chooses_nobody():
    with pytest.raises(ConfigError, match="has no peers"):
        StochasticWiring().choose({}, 1.0, 0.0)


@pytest.mark.parametrize("given", [{"alpha": 0.0}, {"initial_s": -1.0}, {"backward_size": 0.0}])
def test_numbers_out_of_range_are_refused(given):
    (name,) = given
    with pytest.raises(ConfigError, match=name):
        StochasticWiring(**given)
