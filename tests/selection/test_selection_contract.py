"""What every selection of the configuration keeps."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from many_cases import for_each
from scripted_rounds import run

import fl
from fl.randomness import generator
from fl.runs.build import build
from fl.runs.run import run_experiment
from fl.selection import Opening, Reply, RoundEnd, Selection
from fl.simulation.world.availability import Always
from fl.simulation.world.battery import Battery
from fl.simulation.world.slowdowns import ShiftedExponential
from fl.strategies import FedAvg, Rounds

MEMBERS = sorted(path.stem for path in (Path(fl.__file__).parent / "conf/selection").glob("*.yaml"))
each = pytest.mark.parametrize("name", MEMBERS)


def config_of(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        tiny = ["executor=serial", "progress=false", "num_clients=12", "num_rounds=3"]
        tiny += ["model=logistic", "partition=iid", "fleet=uniform", "target=null"]
        return compose("config", [*tiny, *overrides])


def chosen(name):
    """Returns what chooses a selection, and what it needs."""
    return [f"selection={name}", *(["battery=phone"] if name == "by_charge" else [])]


def selection(name):
    return instantiate(config_of(f"selection={name}").selection)


@each
def test_a_member_is_a_frozen_rule_that_is_equal_to_itself(name):
    rule = selection(name)
    assert isinstance(rule, Selection)
    assert rule == selection(name)
    with pytest.raises(AttributeError):
        rule.anything = 1


@each
def test_it_selects_some_of_those_that_are_idle_and_changes_no_state(name):
    rule, n, m = selection(name), 20, 6
    state = rule.init(30)
    rng = np.random.default_rng(0)

    def replies(who, server_round, *, trial=False):
        return RoundEnd(
            server_round,
            [
                Reply(i, i + 1.0, 2.0, {"train-loss": i + 0.5}, rng.random(3).astype(np.float32))
                for i in who
            ],
            trial=trial,
        )

    def unchanged(call, state, *args):
        before = deepcopy(state)
        result = call(state, *args)
        assert repr(state) == repr(before)
        return result

    for t in range(1, 13):
        idle = sorted(rng.choice(n, 15, replace=False).tolist())
        trial, state = unchanged(rule.trial, state, idle)
        if trial is not None:
            assert set(trial.clients) <= set(idle)
            state = unchanged(rule.learn, state, replies(trial.clients, t, trial=True))
            if trial.alone:
                continue
        idle = rule.eligible(state, idle)
        if not idle:
            continue
        opening = Opening(
            t, idle, range(n), min(m, len(idle)), partial(generator, t), lambda c: np.ones(len(c))
        )
        ask, state = unchanged(rule.ask, state, opening)
        while ask is not None:
            assert set(ask.clients) <= set(range(n))
            told = {i: {"num-examples": i + 1, "loss": i, "accuracy": i / n} for i in ask.clients}
            state = unchanged(rule.told, state, ask, told)
            ask, state = unchanged(rule.ask, state, opening)
        choice, after = unchanged(rule.select, state, opening)
        assert unchanged(rule.select, state, opening) == (choice, after)  # a function of its input
        assert 1 <= len(choice.clients) <= m
        assert len(set(choice.clients)) == len(choice.clients)
        assert set(choice.clients) <= set(idle)
        state = unchanged(rule.learn, after, replies(choice.clients, t))


@each
def test_equal_seeds_select_equally_on_a_grid(name):
    runs = [
        run(
            Rounds(FedAvg(), selection=selection(name), clients=3),
            8,
            rounds=6,
            task=ShiftedExponential(),
            battery=Battery(Always(8), least_start=0.3),
        )
        for _ in range(2)
    ]
    (_, first, times, models), (_, second, again, others) = runs
    assert (first.client.tolist(), times) == (second.client.tolist(), again)
    np.testing.assert_array_equal(models, others)


@each
@for_each("strategy", ["scaffold", "over_selection"])
def test_it_goes_with_every_rule_of_rounds(name, strategy):
    config = config_of(*chosen(name), f"strategy={strategy}", "fail_fast=true")
    assert run_experiment(config) is None


@each
def test_it_goes_with_attacks_and_compressors(name):
    more = ["attack=ipm", "num_byzantine=2", "compressor=topk", "aggregator=median"]
    assert run_experiment(config_of(*chosen(name), *more)) is None


@each
def test_a_strategy_without_rounds_refuses_it(name):
    with pytest.raises(Exception, match="does not read selection"):
        build(config_of("strategy=fedbuff", f"selection={name}"))


def test_presets_are_averaging_with_a_selection():
    for name in ("tifl", "oort"):
        assert config_of(f"strategy={name}").strategy.rule._target_ == "fl.strategies.FedAvg"
        assert config_of(f"strategy={name}").selection == config_of(f"selection={name}").selection
