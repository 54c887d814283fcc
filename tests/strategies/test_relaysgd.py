"""RelaySGD: the document's iterates, everybody counted once, and what is lost counted out."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from networks import A3, B3, BEST3, LR, Given, attacked, run
from stand_ins import Scripted

from fl.attacks import ConstantUpdate
from fl.errors import ConfigError
from fl.simulation.world.faults import Faults
from fl.strategies import DPSGD, Gossip, RelaySGD
from fl.topologies import Complete, DirectedRing, OnePeerExponential, Path, Ring, Star, Tree

SIZE = 137  # bytes of a model of two numbers, as a message has it
CHAIN = Path(3)


def given(models):
    """Returns clients whose first task makes a given model, and whose others change nothing."""
    begun = set()

    def change(i, x):
        first = i not in begun
        begun.add(i)
        return np.full_like(x, models[i]) if first else x

    return change


def test_it_has_the_documents_iterates_on_a_chain_and_no_bias():
    ran = run(Gossip(RelaySGD(), topology=CHAIN), num_rounds=300)
    table = [
        (0.066667, 0.466667, 0.866667),
        (0.611111, 0.813333, 0.793333),
        (1.069111, 1.052, 0.888667),
    ]
    for t, x in enumerate(table, 1):
        np.testing.assert_allclose(ran.models[t][:, 0], x, atol=1e-6)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=2e-6)


def test_without_steps_nodes_find_the_mean():
    ran = run(Gossip(RelaySGD(), topology=CHAIN), num_rounds=60, change=given((0, 3, 6)))
    np.testing.assert_allclose(ran.models[1][:, 0], (1, 3, 5), rtol=1e-6)
    np.testing.assert_allclose(ran.models[2][:, 0], (10 / 3, 3, 8 / 3), rtol=1e-6)
    np.testing.assert_allclose(ran.models[-1], 3, rtol=1e-6)


@pytest.mark.parametrize("topology", [Tree(13, k=3), Star(6), Path(7)], ids=repr)
def test_every_node_averages_everybodys_model_as_old_as_it_is_far(topology):
    n, T = topology.num_nodes, 12
    rng = np.random.default_rng(1)
    made = rng.standard_normal((T, n)).astype(np.float32)  # what training makes, in every round
    tasks = [0] * n

    def change(i, x):
        tasks[i] += 1
        return np.full_like(x, made[tasks[i] - 1, i])

    ran = run(
        Gossip(RelaySGD(), topology=topology, evaluated_nodes=None),
        a=np.ones(n),
        b=np.zeros(n),
        num_rounds=T,
        change=change,
    )
    distance = dict(nx.all_pairs_shortest_path_length(topology.graph(0)))
    for t in range(T):
        for i in range(n):
            ages = [distance[i][j] for j in range(n)]
            # d hops take d rounds, of which the first is the round itself; else the own stands in.
            heard = [
                made[t - max(d - 1, 0), j] if d - 1 <= t else made[t, i] for j, d in enumerate(ages)
            ]
            np.testing.assert_allclose(ran.models[t + 1][i], np.mean(heard), atol=2e-6)


def test_a_message_is_a_model_and_a_count_each_way():
    ran = run(Gossip(RelaySGD(), topology=CHAIN), num_rounds=3)
    assert ran.grid.engine.bytes_up == 3 * 4 * (SIZE + 4)


def test_what_is_lost_or_away_biases_nothing_for_good():
    away = Scripted(3, {1: [2.0, 4.0]})
    ran = run(Gossip(RelaySGD(), topology=CHAIN), num_rounds=300, availability=away)
    assert ran.grid.trace.faults()["absent"] >= 2
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=2e-6)
    # All agree on 3 once: who misses a message has its own model in its place, and stays there.
    lossy = Faults(message_loss=0.2, dropout=0.1, detection_s=0.5)
    ran = run(
        Gossip(RelaySGD(), topology=Tree(7)),
        a=np.ones(7),
        b=np.full(7, 3.0),
        num_rounds=200,
        faults=lossy,
    )
    assert sum(fact["lost_payloads"] for fact in ran.facts[1:]) > 20
    np.testing.assert_allclose(ran.models[-1], 3, rtol=1e-5)


def test_a_byzantine_node_forges_its_own_part_and_relays_the_rest():
    method = Gossip(RelaySGD(), topology=CHAIN)
    liar = attacked(method, ConstantUpdate(30.0), [1])
    # Forged as 30 whatever the node has made: the ends hear 30 and, a round later, each other.
    ran = run(liar, num_rounds=3, change=lambda i, x: np.full_like(x, float(i)))
    np.testing.assert_allclose(ran.models[1][0], (0 + 0 + 30) / 3)
    np.testing.assert_allclose(ran.models[2][0], (0 + 30 + 2) / 3)
    assert ran.grid.trace.faults()["forged"] == 3


@pytest.mark.parametrize("topology", [Ring(4), Complete(3), DirectedRing(3), OnePeerExponential(4)])
def test_graphs_that_are_no_trees_are_refused(topology):
    with pytest.raises(ConfigError, match=f"topology is {type(topology).__name__}"):
        Gossip(RelaySGD(), topology=topology)


def test_on_a_star_dpsgd_is_biased_and_relaysgd_is_not():
    star = Given.of(Star(3).matrix(0).toarray())
    relayed, mixed = (
        run(Gossip(rule, topology=star), a=A3, b=B3, lr=LR, num_rounds=300).models[-1]
        for rule in (RelaySGD(), DPSGD())
    )
    np.testing.assert_allclose(relayed, BEST3, rtol=2e-6)
    assert np.abs(mixed - BEST3).max() > 0.1
