"""Whatever a summary has under `extra` is explained, and what is explained is there."""

from __future__ import annotations

import pytest

import fl
from fl.reports.extra import EXTRA

FEW = {"num_clients": 4, "num_rounds": 1, "executor": "serial", "progress": False}
RUNS = {  # to keys of which all that is explained is there
    "machines": (
        {
            "hierarchy": "edge",
            "hierarchy.edges": 2,
            "fleet": "uniform",
            "runtime": "flower",
            "runtime.server_work_w": 1.0,
            "central_epochs": 1,
        },
        ("hierarchy", "server", "time_shares"),
    ),
    "job": (
        {
            "strategy": "diloco",
            "fleet/checkpointing": "blocking",
            "fleet.checkpointing.mtbf_s": 10.0,
            "fleet.checkpointing.interval_s": 0.01,
            "fleet.checkpointing.state_bytes": 1e3,
            "fleet.checkpointing.restart_s": 0.01,
        },
        ("checkpointing",),
    ),
    "phones": ({"fleet": "mobile", "battery": "phone"}, ("batteries",)),
    "attacked": ({"attack": "sign_flip", "num_byzantine": 1, "client.batching": "measured"}, ()),
}


@pytest.mark.parametrize("name", RUNS)
def test_each_key_is_explained(name):
    keys, whole = RUNS[name]
    found = fl.run(**keys, **FEW).summary["extra"]
    assert found.keys() <= EXTRA.keys()
    for key, value in found.items():
        if below := EXTRA[key][1]:
            assert value.keys() <= below.keys()
    for key in whole:
        assert found[key].keys() == EXTRA[key][1].keys()
