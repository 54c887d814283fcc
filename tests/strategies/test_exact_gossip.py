"""D2, EXTRA and BEER, which unlike data do not bias: iterates, sums that are kept, eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
from networks import BEST3, Q3, W3, Given, attacked, run
from stand_ins import Scripted

from fl.attacks import ConstantUpdate
from fl.compression import TopK
from fl.errors import ConfigError
from fl.simulation.world.faults import Faults
from fl.strategies import BEER, D2, EXTRA, Exchange, Gossip
from fl.topologies import BaseGraph, Complete, Lazy, Ring

SIZE = 137  # bytes of a model of two numbers, as a message has it
TIGHT = {"rtol": 2e-6, "atol": 1e-6}

ITERATES = {  # of the document, from 0
    "D2": (Gossip(D2(eta=0.1), topology=Q3), [(0.1, 0.35, 0.95), (0.41, 0.65625, 1.36875)]),
    "EXTRA": (
        Gossip(EXTRA(eta=0.1), topology=Q3),
        [(0, 0.2, 1.2), (0.1, 0.51, 1.79), (0.345, 0.798, 2.008)],
    ),
    "BEER": (
        Gossip(BEER(eta=0.05), topology=Q3, gamma=0.5),
        [(0, 0.1, 0.6), (0.025, 0.2275, 1.0475)],
    ),
}


@pytest.mark.parametrize("name", ITERATES)
def test_it_has_the_documents_iterates_and_no_bias(name):
    method, iterates = ITERATES[name]
    ran = run(method, num_rounds=600)
    for t, x in enumerate(iterates, 1):
        np.testing.assert_allclose(ran.models[t][:, 0], x, **TIGHT)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=5e-6)


def test_beers_estimates_are_the_documents_and_their_mean_that_of_the_gradients():
    method = Gossip(BEER(eta=0.05), topology=Q3, gamma=0.5)
    run(method, num_rounds=2)
    np.testing.assert_allclose([state.v[0] for state in method.states], (0, -1.8, -10.2), **TIGHT)
    run(method, num_rounds=400)
    assert max(abs(state.v[0]) for state in method.states) < 1e-5
    with pytest.raises(ConfigError, match="eta is 0"):
        BEER(eta=0)


KEPT = {  # what has to sum to 0, through absences too
    D2: lambda state: state.s,
    EXTRA: lambda state: state.s,
    BEER: lambda state: state.v - state.g,
}


@pytest.mark.parametrize("rule", KEPT, ids=lambda r: r.__name__)
def test_a_node_that_was_away_moves_no_fixed_point(rule):
    method = Gossip(rule(eta=0.05), topology=Q3)
    ran = run(method, num_rounds=900, availability=Scripted(3, {2: [2.0, 4.0]}))
    assert ran.grid.trace.faults()["absent"] >= 2
    kept = sum(KEPT[rule](state) for state in method.states)
    np.testing.assert_allclose(kept, 0, atol=3e-5)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=2e-5)


@pytest.mark.parametrize("rule", KEPT, ids=lambda r: r.__name__)
def test_it_goes_on_through_every_fault(rule):
    faults = Faults(dropout=0.1, message_loss=0.1, detection_s=0.5)
    ran = run(Gossip(rule(eta=0.05), topology=Ring(3)), num_rounds=60, faults=faults)
    assert ran.grid.trace.faults()["absent"] > 5
    assert np.isfinite(ran.models[-1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", KEPT)
def test_over_compressed_edges_it_has_no_bias_either(rule):
    method = Gossip(rule(eta=0.02), topology=Q3, gamma=0.3)
    ran = run(method.within(Exchange(uplink=TopK(k=1))), num_rounds=1500)
    np.testing.assert_allclose(ran.models[-1], BEST3, rtol=1e-4)


def test_what_crosses_an_edge():
    bytes_up = {
        rule: run(Gossip(rule(), topology=Q3), num_rounds=3).grid.engine.bytes_up for rule in KEPT
    }
    assert bytes_up == {D2: 3 * 4 * SIZE, EXTRA: 3 * 4 * SIZE, BEER: 3 * 4 * 2 * SIZE}


def test_extras_models_travel_while_gradients_are_computed():
    begun = {rule: run(Gossip(rule(), topology=Q3), num_rounds=2).of for rule in (EXTRA, D2)}
    from fl.simulation.kernel.trace import Event

    first = {rule: min(e[0] for e in of(Event.TRANSFER)) for rule, of in begun.items()}
    assert (first[EXTRA], first[D2]) == (0.0, 1.0)


def test_a_byzantine_node_forges_what_it_sends_and_nothing_else():
    for rule in KEPT:
        method = attacked(Gossip(rule(eta=0.05), topology=Q3), ConstantUpdate(3.0), [0])
        ran = run(method, num_rounds=4)
        assert ran.grid.trace.faults()["forged"] == 4


@pytest.mark.parametrize(
    ("make", "named"),
    [
        # A ring of an even number has an eigenvalue of exactly -1/3.
        (lambda: Gossip(D2(), topology=Ring(4)), r"gamma is None.* -0\.333"),
        (lambda: Gossip(D2(), topology=Given.of([[0.1, 0.9], [0.9, 0.1]])), r"is -0\.8"),
        (lambda: Gossip(D2(), topology=BaseGraph(6)), "topology is BaseGraph"),
        (lambda: Gossip(EXTRA(), topology=BaseGraph(6)), "topology is BaseGraph"),
        (lambda: Gossip(EXTRA(), topology=Given.of([[0, 1], [1, 0]])), r"is -1; "),
        (lambda: Gossip(D2(), topology=Given.of(W3, kind="rows")), "'rows'"),
        (lambda: D2(eta=0), "eta is 0"),
        (lambda: EXTRA(eta=-1.0), "eta is -1"),
    ],
)
def test_what_cannot_work_is_refused(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


def test_half_a_step_lets_d2_run_on_every_graph_that_stays():
    Gossip(D2(), topology=Ring(4), gamma=0.5)
    Gossip(D2(), topology=Ring(4, weights=Lazy()))
    Gossip(D2(), topology=Ring(5))
    Gossip(D2(), topology=Complete(600))
