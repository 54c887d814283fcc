"""The exchange: any strategy runs in one as a copy, and is what it says it is."""

from __future__ import annotations

import pytest
from every_strategy import EVERY, configured, mostly_slow
from flwr.serverapp.strategy import FedAvg, FedProx, Result

from fl.runs.making import make
from fl.strategies import Driver, Exchange, driver_of


@pytest.mark.parametrize("name", mostly_slow(EVERY))
def test_within_an_exchange_a_strategy_is_a_copy_and_itself_stays_as_it_was(name):
    strategy = make(configured(name), "strategy")
    before = dict(vars(strategy))
    exchange = Exchange(byzantine=frozenset({1}), num_clients=4)
    within = strategy.within(exchange)
    assert type(within) is type(strategy)
    assert within.exchange is exchange
    assert within.traits == strategy.traits
    assert vars(strategy) == before
    assert strategy.exchange == Exchange()


@pytest.mark.parametrize(
    "inner", [FedAvg(), FedProx(proximal_mu=0.1)], ids=lambda s: type(s).__name__
)
def test_a_strategy_of_flowers_is_known_by_what_can_be_read_of_it(inner):
    strategy = driver_of(inner)
    assert strategy.name == type(inner).__name__
    assert not strategy.traits.known
    assert strategy.cohort(10) == 10
    assert strategy.evaluates_on_clients
    told = {"proximal-mu": ("proximal_mu", 0.1)} if isinstance(inner, FedProx) else {}
    assert strategy.told() == told


def test_a_strategy_that_is_a_driver_is_its_own():
    strategy = Driver.__new__(type("Own", (Driver,), {}))
    assert driver_of(strategy) is strategy


def test_a_strategy_derived_from_flowers_with_a_start_of_its_own_is_run_by_that():
    class Own(FedAvg):
        def start(self, grid, **given):
            return Result(arrays=given["initial_arrays"])

    model = object()
    assert driver_of(Own()).start(None, initial_arrays=model).arrays is model
