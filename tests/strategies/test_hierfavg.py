"""HierFAVG, and rounds whose updates a hierarchy adds up."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from fl.aggregation import Median
from fl.errors import ConfigError
from fl.runs.build import build
from fl.runs.run import run_to_end
from fl.strategies import (
    SCAFFOLD,
    Events,
    FedAdam,
    FedAvg,
    FedBuff,
    HierFAVG,
    QFedAvg,
    Rounds,
)
from fl.strategies.round_rule import Updates

E, D = 2, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@lru_cache
def run(*overrides: str):
    given = [
        *("model=logistic", "data=synthetic_iid", "num_clients=6", "num_rounds=4"),
        *("fleet=uniform", "executor=serial", "progress=false", "views=false", "partition=iid"),
        *("client.local_epochs=null", "client.local_steps=2", "checkpoint=off"),
        *overrides,
    ]
    with initialize_config_module("fl.conf", version_base=None):
        return run_to_end(compose("config", given))


def w_of(result) -> np.ndarray:
    return np.concatenate([x.numpy().ravel() for x in result.arrays.values()])


def updates_of(rule, state, models, weights):
    """The updates of clients i at edge server i modulo E that return these models."""
    at = [i % rule.edges for i in range(len(models))]
    starts = rule.models(state)
    deltas = np.stack([x - starts[e] for x, e in zip(models, at, strict=True)])
    return Updates(deltas, weights, clients=range(len(models)), models=at)


def test_edges_average_their_clients_and_the_cloud_the_edges():
    """By the definition, in float64, with clients that go halfway to their own optima."""
    rng = np.random.default_rng(1)
    optima, n = rng.normal(size=(5, D)), np.array([1.0, 5.0, 2.0, 1.0, 3.0])
    rule = HierFAVG(edges=E, kappa2=3)
    state = rule.init(np.zeros(D, np.float32), D)
    at_edges, w = np.zeros((E, D)), np.zeros(D)
    shares = np.array([n[0::2].sum(), n[1::2].sum()])
    for k in range(1, 8):
        x = [(at_edges[i % E] + optima[i]) / 2 for i in range(5)]
        starts = rule.models(state)
        sent = [((starts[i % E] + optima[i]) / 2).astype(np.float32) for i in range(5)]
        assert rule.ends_at_edges(state) == (k % 3 > 0)
        state = rule.step(state, updates_of(rule, state, sent, n))
        for e in range(E):
            at_edges[e] = np.average(x[e::E], axis=0, weights=n[e::E])
        w = np.average(at_edges, axis=0, weights=shares)
        if k % 3 == 0:
            at_edges[:] = w
        np.testing.assert_allclose(state.at_edges, at_edges, **CLOSE)
        np.testing.assert_allclose(state.w, w, **CLOSE)


def test_with_one_edge_round_it_is_fedavg():
    rng = np.random.default_rng(2)
    rule, flat = HierFAVG(edges=E, kappa2=1), FedAvg()
    state, w = rule.init(np.zeros(D, np.float32), D), flat.init(np.zeros(D, np.float32), D)
    n = np.array([3.0, 1.0, 4.0, 2.0])
    for _ in range(3):
        models = rng.normal(size=(4, D)).astype(np.float32)
        state = rule.step(state, updates_of(rule, state, models, n))
        w = flat.step(w, Updates(models - w.w, n))
        np.testing.assert_allclose(state.w, w.w, **CLOSE)


def test_an_edge_without_replies_or_examples_keeps_its_model():
    rule = HierFAVG(edges=E, kappa2=2)
    state = rule.init(np.ones(D, np.float32), D)
    deltas = np.full((2, D), 1.0, np.float32)
    only = Updates(deltas, np.array([1.0, 1.0]), clients=[0, 2], models=[0, 0])
    state = rule.step(state, only)
    np.testing.assert_array_equal(state.at_edges, [[2.0] * D, [1.0] * D])
    np.testing.assert_array_equal(state.w, [2.0] * D)  # nobody of the other is known
    empty = Updates(deltas, np.array([2.0, 0.0]), clients=[0, 1], models=[0, 1])
    state = rule.step(state, empty)
    np.testing.assert_array_equal(state.at_edges, [[3.0] * D] * 2)


@pytest.mark.parametrize(
    "hierarchy", ["edge hierarchy.edges=3", "lifl hierarchy.nodes=2 hierarchy.node_updates=4"]
)
def test_a_run_on_a_hierarchy_ends_at_the_model_of_a_flat_one(hierarchy):
    how = [f"hierarchy={part}" if i == 0 else part for i, part in enumerate(hierarchy.split())]
    flat, summed = run(), run(*how)
    np.testing.assert_allclose(w_of(summed), w_of(flat), **CLOSE)
    assert summed.summary["totals"]["virtual_s"] > flat.summary["totals"]["virtual_s"]
    joules = summed.summary["totals"]["energy_j"]
    charged = summed.summary["extra"]["hierarchy"]
    assert joules["servers"] == charged["energy_j"] > 0
    of_clients = flat.summary["totals"]["energy_j"]["compute"]
    assert joules["compute"] == pytest.approx(of_clients)


def test_without_training_a_hierarchy_takes_as_long():
    how = ("hierarchy=lifl", "hierarchy.nodes=2", "hierarchy.node_updates=4")
    trained, timed = run(*how).summary, run(*how, "client.train=false").summary
    assert timed["totals"]["virtual_s"] == trained["totals"]["virtual_s"]
    assert timed["extra"]["hierarchy"] == trained["extra"]["hierarchy"]


def test_edge_rounds_do_not_cross_to_the_cloud():
    def between(kappa2: int) -> int:
        how = ("strategy=hierfavg", "hierarchy.edges=3", f"strategy.rule.kappa2={kappa2}")
        return run(*how).summary["extra"]["hierarchy"]["bytes_between"]

    assert between(1) == 4 * between(4)


def test_what_dies_with_an_aggregator_is_in_no_step():
    lossy = ("hierarchy=edge", "hierarchy.edges=3", "hierarchy.failure=0.4")
    lost = run(*lossy, "hierarchy.on_failure=lost")
    faults, extra = lost.summary["faults"], lost.summary["extra"]["hierarchy"]
    assert faults["aggregator_failed"] == extra["failures"] > 0
    kinds = lost.trace.kinds
    used, left = (sum(k.name == what for k in kinds) for what in ("APPLIED", "DISCARDED"))
    assert used > 0
    assert left >= extra["lost_updates"] > 0
    assert used + left == 24  # of 6 clients in 4 rounds, each once
    retried = run(*lossy)
    assert retried.summary["extra"]["hierarchy"]["lost_updates"] == 0
    np.testing.assert_allclose(w_of(retried), w_of(run()), **CLOSE)


def test_strategies_say_whether_sums_are_all_they_look_at():
    for sums in (Rounds(FedAvg()), Rounds(FedAdam()), Rounds(HierFAVG(edges=2))):
        assert sums.traits.sums
    for looks in (
        Rounds(FedAvg(), aggregator=Median()),
        Rounds(FedAvg(), noise_scale=0.9),
        Rounds(SCAFFOLD(num_clients=4)),
        Rounds(QFedAvg()),
        Events(FedBuff()),
    ):
        assert not looks.traits.sums
    with pytest.raises(ConfigError, match="kappa2 is 0"):
        HierFAVG(kappa2=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hierarchy=lifl", "strategy=scaffold"], "hierarchy is Lifl, but its machines hand on"),
        (["strategy=hierfavg", "strategy.rule.edges=4"], "use hierarchy=edge with as many"),
        (["hierarchy=edge", "network=cells"], "hierarchy.edges are the links between"),
        (["hierarchy=edge", "hierarchy.machine.cold_s=-1"], "hierarchy.machine.cold_s is -1"),
    ],
)
def test_what_does_not_go_with_a_hierarchy_is_refused(overrides, message):
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", ["data=synthetic_iid", "partition=iid", *overrides])
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build(config)
