"""Strategies that pass the time of stages end with the same trace after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import Run, journal_of, outcome

COMMON = [
    *("data=synthetic_iid", "partition=iid", "model=logistic", "executor=serial", "views=false"),
    *("progress=false", "fleet=uniform", "fleet/availability=exponential", "num_clients=6"),
    *("fleet.availability.mean_on_s=60", "fleet.availability.mean_off_s=20", "fleet.flops=1e11"),
    *("fleet.faults.crash=0.02", "fleet.faults.detection_s=1"),
]
RUNS = {
    "swarm": ["strategy.num_stages=2", "strategy.micro_batches=8", "num_rounds=3"],
    "petals": ["strategy.num_blocks=4", "strategy.held=2", "strategy.tokens=8", "num_rounds=2"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    run = Run([*COMMON, f"strategy={name}", *RUNS[name]])
    run(tmp_path / "whole")
    whole = outcome(tmp_path / "whole")
    assert whole["summary"]["faults"]
    assert run.killed(tmp_path / "killed", 3000, resume=False)
    assert journal_of(tmp_path / "killed").stat().st_size >= 3000
    run(tmp_path / "killed", resume=True)
    assert outcome(tmp_path / "killed") == whole
