"""Every attack under every aggregator, as the command line builds them, on a tiny problem."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from attack_members import ATTACKS, CONF
from flwr.app import ArrayRecord
from hydra import compose, initialize_config_module

import fl.runs.learnt
from fl import simulate
from fl.attacks import Combined, Poisoning
from fl.runs.build import build
from fl.runs.evaluation import central_evaluation
from fl.simulation.kernel.trace import Event

AGGREGATORS = sorted(path.stem for path in (CONF / "aggregator").glob("*.yaml"))
CLIENTS, BYZANTINE = 13, 2
TINY = [
    "executor=serial",
    "progress=false",
    f"num_clients={CLIENTS}",
    "model=logistic",
    "partition=iid",
    "fleet=uniform",
    "client=momentum",
    "client.batch_size=4",
    "strategy=fedavg",
    "strategy.fraction_train=1.0",
    "strategy.root_examples=8",
    f"num_byzantine={BYZANTINE}",
    f"strategy.f={BYZANTINE}",
]
# They are no vectors, so no rule is shown them, not even one that tolerates no Byzantine client.
NO_VECTORS = ("infinity", "not_a_number")


@cache
def config_of(attack, aggregator):
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*TINY, f"attack={attack}", f"aggregator={aggregator}"])


@pytest.fixture
def deal_once(monkeypatch):
    """Reads and deals the data only once: it is the same for all."""
    monkeypatch.setattr(fl.runs.learnt, "federate", _federated)


_dealt = {}


def _federated(source, partition):
    if not _dealt:
        _dealt["data"] = fl.data.federate(source, partition)
    return _dealt["data"]


def check(attack, aggregator):
    experiment = build(config_of(attack, aggregator))
    evaluations = []

    def server(grid, context, recorder):
        evaluate = central_evaluation(experiment)
        result = experiment.strategy.start(
            grid,
            ArrayRecord(experiment.model().state_dict()),
            num_rounds=2,
            evaluate_fn=lambda r, arrays: evaluations.append(evaluate(r, arrays)),
        )
        recorder.final(result.arrays)

    result = simulate(
        server, experiment.app, experiment.fleet, executor=experiment.executor, progress=False
    )
    assert all(np.isfinite(a.numpy()).all() for a in result.arrays.values())
    assert result.trace.counts[Event.NO_STEP] == result.trace.counts[Event.NOT_FINITE] == 0
    made = fl.runs.making.make(config_of(attack, aggregator), "attack")
    forged = 0 if isinstance(made, Poisoning) else 2 * BYZANTINE
    assert result.trace.counts[Event.FORGED] == forged
    assert result.trace.counts[Event.REJECTED] == (forged if attack in NO_VECTORS else 0)
    assert len(experiment.strategy.exchange.byzantine) == BYZANTINE
    changed = np.flatnonzero(experiment.app.data.train.y != experiment.data.train.y)
    theirs = [experiment.data.partitions[c] for c in experiment.strategy.exchange.byzantine]
    assert bool(len(changed)) == isinstance(made, Poisoning | Combined)
    assert np.isin(changed, np.concatenate(theirs)).all()
    backdoor = "backdoor" in attack
    assert ("attack_success_rate" in evaluations[-1]) == backdoor
    assert isinstance(made, Combined) == (attack == "backdoor_replacement")


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_runs(attack, deal_once):
    check(attack, "nnm_trimmed_mean")


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_aggregator_is_attacked(aggregator, deal_once):
    check("alie_optimized", aggregator)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_runs_under_every_aggregator(attack, deal_once):
    for aggregator in AGGREGATORS:
        check(attack, aggregator)
