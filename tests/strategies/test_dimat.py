"""DIMAT: what nodes hear reaches their next task; matched nodes keep what plain ones lose."""

from __future__ import annotations

import numpy as np
import pytest
from every_strategy import ran
from networks import A3, B3, BEST3, LR, Q3, run
from stand_ins import Scripted

from fl.errors import ConfigError
from fl.simulation.world.faults import Faults
from fl.strategies import DIMAT, DFedAvg, Gossip, LocalTraining, MergingRule
from fl.topologies import MATCHA, Complete, Ring

PLAIN = DIMAT(by="order", initial="same")


def merged(content):
    """Returns what a client that matches nothing begins with."""
    models = [content["arrays"].to_numpy_ndarrays()[0]]
    while f"arrays.{len(models)}" in content:
        models.append(content[f"arrays.{len(models)}"].to_numpy_ndarrays()[0])
    shares = content["config"].get("merge-shares", [1.0])
    assert len(shares) == len(models)
    assert len(models) == 1 or content["config"]["merge-by"] == "order"
    return np.tensordot(np.array(shares), np.stack(models), 1)


def summed(i, content):
    """Returns what a node with a quadratic loss makes of it: it merges, and steps once."""
    x = merged(content)
    return x - np.float32(LR * A3[i]) * (x - np.float32(B3[i]))


def test_by_order_it_is_dfedavg_one_half_round_earlier():
    ours = run(Gossip(PLAIN, topology=Q3), num_rounds=6, of_content=summed)
    other = run(Gossip(DFedAvg(), topology=Q3), num_rounds=6)
    W = Q3.matrix(0).toarray()
    for mine, mixed in zip(ours.models[1:], other.models[1:], strict=True):
        np.testing.assert_allclose(W @ mine, mixed, rtol=2e-6)
    assert ours.times == other.times


def test_who_misses_a_neighbour_takes_its_own_model_instead():
    away = Scripted(3, {2: [1.5]})  # for good, from the second round on
    ran_ = run(Gossip(PLAIN, topology=Q3), num_rounds=3, of_content=summed, availability=away)
    _, one, two, three = ran_.models
    W = Q3.matrix(0).toarray()
    alone = np.array([W[0], [W[1, 0], W[1, 1] + W[1, 2], 0], [0, 0, 1]])
    a, b = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [1.0], [4.0]])

    def stepped(x):
        return x - 0.1 * a * (x - b)

    np.testing.assert_allclose(two[:2], stepped(W @ one)[:2], rtol=1e-5)
    np.testing.assert_allclose(three[:2], stepped(alone @ two)[:2], rtol=1e-5)
    np.testing.assert_array_equal([two[2], three[2]], [one[2], one[2]])


def test_lost_payloads_stop_nobody():
    lossy = Faults(dropout=0.2, message_loss=0.3, detection_s=0.5)
    ran_ = run(Gossip(PLAIN, topology=Q3), num_rounds=40, of_content=summed, faults=lossy)
    assert sum(f["lost_payloads"] for f in ran_.facts[1:]) > 10
    np.testing.assert_allclose(ran_.models[-1], BEST3, atol=1.2)


def test_a_rule_by_matrices_alone_is_dfedavg():
    rule = DIMAT()
    assert isinstance(rule, MergingRule)
    state = rule.adapt(rule.init(np.zeros(2, np.float32)), LocalTraining(None, np.float32([1, 2])))
    assert rule.message(state).tolist() == [1, 2]
    assert rule.combine(state, np.float32([3, 4])).x.tolist() == [3, 4]
    heard = rule.gather(state, [np.float32([5, 6])], [0.25, 0.75])
    asked = rule.merging(heard)
    assert asked.by == "activations"
    assert [x.tolist() for x in asked.others] == [[5, 6]]
    assert list(asked.shares) == [0.25, 0.75]


def test_pretraining_is_told_in_the_first_round_alone():
    rule = DIMAT(pretraining=7)
    assert rule.told(0) == {"local-epochs": 7}
    assert rule.told(1) == DIMAT().told(0) == {}


SMALL = ["model=mlp", "model.hidden=[16]", "topology=complete", "views=false"]
SMALL += ["strategy.rule.pretraining=8", "client.batch_size=16", "num_clients=3"]


@pytest.fixture(scope="module")
def histories():
    ways, short = ("activations", "weights", "order"), "num_rounds=2"
    return {by: ran("dimat", *SMALL, short, f"strategy.rule.by={by}")[1].history for by in ways}


def test_nodes_that_began_apart_lose_less_by_merging_if_they_match(histories):
    before = histories["order"][1]["node_loss"]
    after = {by: history[2]["node_loss"] for by, history in histories.items()}
    for history in histories.values():
        assert history[1]["node_loss"] == pytest.approx(before, rel=1e-5)
    assert max(after["activations"], after["weights"]) < 0.7 * after["order"]
    assert before < 0.7 * after["order"]


def test_the_mean_is_of_models_in_one_order(histories):
    first = {by: history[1] for by, history in histories.items()}
    assert first["weights"]["consensus_rms"] < 0.9 * first["order"]["consensus_rms"]
    assert first["weights"]["loss"] < 0.6 * first["order"]["loss"]


def test_all_nodes_begin_alike_if_told_so():
    _, run_ = ran("dimat", *SMALL, "num_rounds=1", "strategy.rule.initial=same")
    assert run_.history[0]["consensus_rms"] == 0
    assert run_.history[1]["consensus_rms"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DIMAT(by="luck"), "by is 'luck'"),
        (lambda: DIMAT(initial="other"), "initial is 'other'"),
        (lambda: DIMAT(pretraining=0), "pretraining is 0"),
        (lambda: run(Gossip(DIMAT(), topology=Q3), num_rounds=1), "nothing draws the initial"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_it_goes_with_matchings_of_negative_weight():
    Gossip(PLAIN, topology=MATCHA(6, Complete(6), budget=0.5))
    Gossip(PLAIN, topology=Ring(5))
