"""Clients that take their time and train nothing: the same events and bytes, and no learning."""

import numpy as np
import pytest

import fl
from fl.errors import ConfigError

FEW = dict(
    executor="serial",
    num_clients=8,
    num_rounds=3,
    progress=False,
    **{"fleet.faults.dropout": 0.1, "fleet.faults.message_loss": 0.05},
)
METHODS = {
    "fedavg": {},
    "fedbuff": {"strategy.rule.buffer_size": 2},
    "scaffold": {},
    "dpsgd": {},
    "diloco": {"strategy.rule.inner_steps": 3},
    "fedamd": {"strategy.rule.p": 0.3, "num_rounds": 8},
    "gradient_tracking": {"compressor": "bf16"},
    "backup_workers": {"num_rounds": 5},
}


def columns(run):
    return run.trace.table().to_pydict()


@pytest.mark.parametrize("method", METHODS)
def test_the_events_are_those_of_clients_that_train(method):
    more = {**FEW, **METHODS[method]}
    trained, untrained = (
        fl.run(strategy=method, **{**more, "client.train": train}) for train in (True, False)
    )
    assert columns(untrained) == columns(trained)
    totals = [run.summary["totals"] for run in (untrained, trained)]
    for name in ("virtual_s", "bytes_down", "bytes_up", "energy_j"):
        assert totals[0][name] == totals[1][name], name
    assert untrained.summary["status"] == "completed"
    assert not {"accuracy", "loss", "train_loss"} & {*untrained.frame()}
    assert untrained.summary["extra"]["trained"] is False
    assert "trained" not in trained.summary["extra"]


def test_the_model_stays_and_is_not_said_to_have_reached_anything():
    run = fl.run(strategy="fedavg", **{**FEW, "client.train": False})
    other = fl.run(strategy="fedbuff", **{**FEW, "client.train": False})
    for x, y in zip(run.arrays.to_numpy_ndarrays(), other.arrays.to_numpy_ndarrays(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert run.summary["target"] is None


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"client.train": "maybe"}, "client.train is 'maybe'"),
        ({"client.train": False, "client/contact": "plateau", "strategy": "cdfl"}, "contact"),
        ({"client.train": False, "strategy": "prunefl"}, "client.train is false"),
        ({"client.train": False, "evaluate_train": True}, "evaluate_train"),
        ({"client.train": False, "personal.every": 1, "personal.held_out": 0.2}, "personal"),
    ],
)
def test_what_makes_no_sense_without_training_is_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        fl.run(**{**FEW, **keys})
