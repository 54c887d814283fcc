"""What all drivers with a rule share: the kind of their rule, and the arguments of their base."""

from __future__ import annotations

import pytest

import fl.compression
import fl.strategies
from fl.compression import OneBitAdam
from fl.errors import ConfigError
from fl.strategies import (
    ADPSGD,
    DPSGD,
    SASRRW,
    BackupWorkers,
    DiLoCo,
    Events,
    FedAST,
    FedAvg,
    FedBuff,
    Gossip,
    OuterSteps,
    Pairs,
    ParameterServer,
    Plexus,
    Polling,
    QuAFL,
    Replicas,
    Rounds,
    Sampled,
    SimultaneousEvents,
    SimultaneousRounds,
    SyncST,
    Walks,
)
from fl.topologies import Ring

RING = {"topology": Ring(4)}
DRIVERS = {  # to a rule of its kind, and what it needs beside that
    Events: (FedBuff(), {}),
    Polling: (QuAFL(), {"contacted": 1, "waiting_s": 1.0, "interaction_s": 1.0}),
    Rounds: (FedAvg(), {}),
    ParameterServer: (BackupWorkers(), {}),
    SimultaneousEvents: (FedAST(), {"concurrency": 2}),
    SimultaneousRounds: (SyncST(), {"concurrency": 2}),
    OuterSteps: (DiLoCo(inner_steps=2), {}),
    Gossip: (DPSGD(), RING),
    Pairs: (ADPSGD(), RING),
    Walks: (SASRRW(), RING),
    Sampled: (Plexus(), {"num_nodes": 4}),
    Replicas: (OneBitAdam(workers=4, warmup=1, lr=0.1), {}),
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_takes_rules_of_its_own_kind_only(driver):
    rule, own = DRIVERS[driver]
    made = driver(rule, **own)
    assert made.name == type(rule).__name__
    assert hasattr(fl.strategies, driver.example) or hasattr(fl.compression, driver.example)
    other = QuAFL() if driver is Events else FedBuff()
    with pytest.raises(ConfigError) as refused:
        driver(other, **own)
    assert str(refused.value).startswith(f"rule is {other!r}"[:60])
    assert f".{driver.rules.__name__}," in str(refused.value)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("name", "value"), [("retry_s", 0.0), ("min_available_nodes", 0), ("patience", -1.0)]
)
def test_arguments_of_the_base_are_checked_or_are_none_of_the_driver(driver, name, value):
    rule, own = DRIVERS[driver]
    with pytest.raises((ConfigError, TypeError)) as refused:
        driver(rule, **own, **{name: value})
    told = f"{name} is {value!r}" if refused.type is ConfigError else f"argument '{name}'"
    assert told in str(refused.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_records_have_the_names_that_they_are_given(driver):
    rule, own = DRIVERS[driver]
    assert driver(rule, **own).keys == ("arrays", "config")
    named = driver(rule, **own, arrayrecord_key="w", configrecord_key="told")
    assert named.keys == ("w", "told")
