"""What clients would use is the same, to the last row, after a run was killed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import HARSH, SMALL, Run, journal_of, outcome

ROWS = [*SMALL, *HARSH, "strategy=fedbuff", "client/correction=ditto", "partition.held_out=0.2"]
ROWS += ["num_clients=8", "num_rounds=6", "personal.every=2", "personal.rows=true"]
ROWS += ["personal.fine_tune.steps=2", "personal.clients=5"]


@pytest.mark.slow
def test_rows_of_a_run_that_was_killed_are_those_of_one_that_was_not(tmp_path: Path) -> None:
    run = Run(ROWS)
    run(tmp_path / "whole")
    killed = tmp_path / "killed"
    moments = (15_000, 40_000)
    for i, moment in enumerate(moments):
        assert run.killed(killed, moment, resume=i > 0)
        assert journal_of(killed).exists()
    run(killed, resume=True)
    assert outcome(killed) == outcome(tmp_path / "whole")
    rows = [(d / "personal.csv").read_text() for d in (killed, tmp_path / "whole")]
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) == 1 + 5 * 4
