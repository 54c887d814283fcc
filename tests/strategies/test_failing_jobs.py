"""Outer steps of a job that writes checkpoints and fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from islands import SGD, run

from fl.simulation.world.checkpointing import Checkpointing
from fl.simulation.world.fleets import uniform
from fl.strategies import DiLoCo, EagerUpdates

BY = Checkpointing(
    interval_s=0.1,
    state_bytes=1e9,
    host_bandwidth=1e10,
    storage_bandwidth=1e9,
    restart_s=0.5,
    mtbf_s=1.5,
)


@pytest.mark.parametrize("rule", [DiLoCo(inner_steps=2), EagerUpdates(inner_steps=2)])
def test_a_job_that_fails_trains_the_same_model_later(rule):
    fleet = uniform(num_clients=2, seed=0, latency_s=0.05)
    steady = run(rule, 6, fleet=fleet, rule=SGD)
    failing = run(rule, 6, fleet=replace(fleet, checkpointing=BY), rule=SGD)
    np.testing.assert_array_equal(failing.rows, steady.rows)
    report = failing.summary["extra"]["checkpointing"]
    assert "checkpointing" not in steady.summary["extra"]
    assert report["checkpoints"] > 0
    assert report["failures"] > 0
    costs = sum(report[name] for name in ("stalled_s", "lost_s", "restarting_s"))
    took = failing.summary["totals"]["virtual_s"]
    assert took == pytest.approx(steady.summary["totals"]["virtual_s"] + costs)
    assert failing.run.trace.time[-1] == pytest.approx(took)
    busy = [done.summary["totals"]["utilisation"] for done in (failing, steady)]
    assert busy[0] < busy[1]
