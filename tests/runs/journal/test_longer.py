"""A run that is made longer ends as one that was as long from the beginning."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fl.cli import main
from fl.runs.journal.journal import Journal

FEW = ["executor=serial", "num_clients=6", "fleet=uniform", "progress=false", "views=false"]
KEEP = ["checkpoint.keep=true"]
KINDS = {
    "fedbuff": ["strategy=fedbuff", "strategy.rule.buffer_size=2", "evaluate_every=1"],
    "fedavg": ["strategy=fedavg", "fleet=mobile", "num_clients=30"],
    "scaffold": ["strategy=scaffold", "fleet=mobile"],
    "dpsgd": ["strategy=dpsgd"],
    "diloco": ["strategy=diloco", "strategy.rule.inner_steps=5"],
    "ditto": ["strategy=ditto", "goal=personal", "personal.every=1"],
}
QUICK = ("fedbuff", "fedavg")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a line of `fl` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it, and it would stay

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["fl", *words])
        main()

    return run


def rows_of(directory: Path) -> list[str]:
    return (directory / "metrics.csv").read_text().splitlines()[1:]


def outcome(directory: Path) -> Any:
    summary = json.loads((directory / "summary.json").read_text())
    without_host = [
        [v for i, v in enumerate(row.split(",")) if i != 2] for row in rows_of(directory)
    ]
    return summary["model_sha256"], summary["trace_sha256"], without_host


def made_longer(typed: Any, kind: list[str]) -> None:
    typed(*FEW, *kind, "num_rounds=2", *KEEP, "hydra.run.dir=short")
    before = outcome(Path("short"))
    typed("resume", "short", "num_rounds=4")
    typed(*FEW, *kind, "num_rounds=4", "hydra.run.dir=long")
    assert outcome(Path("short-4")) == outcome(Path("long"))
    assert outcome(Path("short")) == before
    replayed = Journal(Path("short-4/checkpoint/journal"), None)
    assert replayed.head["extends"] == {"num_rounds": 2}
    replayed.close()


def test_a_longer_run_has_the_bits_of_one_that_was_as_long(typed):
    made_longer(typed, KINDS["fedbuff"])


def longer_in_time(typed: Any, kind: list[str]) -> None:
    typed(*FEW, *kind, "num_rounds=4", "hydra.run.dir=whole")
    times = [float(row.split(",")[1]) for row in rows_of(Path("whole"))]
    middle = (times[1] + times[2]) / 2
    typed(*FEW, *kind, "num_rounds=4", f"time_limit_s={middle}", *KEEP, "hydra.run.dir=brief")
    before = outcome(Path("brief"))
    assert len(before[2]) < len(times) + 1
    typed("resume", "brief", "time_limit_s=1e6")
    assert outcome(Path("brief-1e6")) == outcome(Path("whole"))
    assert outcome(Path("brief")) == before


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in KINDS]
)
def test_a_run_that_time_has_ended_goes_on_to_the_bits_of_one_that_had_more(typed, kind):
    longer_in_time(typed, KINDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fedbuff"])
def test_longer_runs_of_every_kind_have_the_bits_of_those(typed, kind):
    made_longer(typed, KINDS[kind])


def test_what_cannot_be_made_longer_is_refused_and_left(typed, capsys):
    def refused(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            typed("resume", *words)
        return capsys.readouterr().err

    typed(*FEW, "num_rounds=1", "hydra.run.dir=gone")
    assert "checkpoint.keep=true" in refused("gone", "num_rounds=3")
    typed(*FEW, "num_rounds=3", "evaluate_every=2", "checkpoint.keep=true", "hydra.run.dir=odd")
    assert "num_rounds=N" in refused("odd", "seed=1")
    assert "num_rounds is 3" in refused("odd", "num_rounds=3")
    assert "no such module" in refused("odd", "num_rounds=5", "--allow", "nowhere_at_all")
    assert not Path("odd-5").exists()
    before = outcome(Path("odd"))
    assert "evaluate_every" in refused("odd", "num_rounds=4")  # its last model was not due
    assert outcome(Path("odd")) == before
