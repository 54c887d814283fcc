"""What a member of one group chooses in another, and that the user is told."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from fl.runs.choices import implied

QUICK = ["executor=serial", "progress=false", "fleet=uniform", "model=logistic", "num_clients=10"]


def said(*overrides: str) -> list[str]:
    with initialize_config_module("fl.conf", version_base=None):
        job = compose("config", [*overrides], return_hydra_config=True).hydra
    asked = {override.lstrip("+").partition("=")[0] for override in overrides}
    return implied(job.runtime.choices, asked)


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        ([], []),
        (["strategy=fedbuff", "client=adamw"], []),
        (["strategy=fedprox"], ["strategy=fedprox sets client/correction=proximal"]),
        (["strategy=fedprox", "client=sgd"], ["strategy=fedprox sets client/correction=proximal"]),
        (["strategy=fedprox", "client/correction=proximal"], []),
        (
            ["strategy=fedasync"],
            ["strategy=fedasync sets client/correction=proximal, length=updates"],
        ),
        (
            ["strategy=fedasync", "length=steps"],
            ["strategy=fedasync sets client/correction=proximal"],
        ),
        (
            ["strategy=sgp", "client=sgd"],
            [
                "strategy=sgp sets topology=one_peer_exponential, fleet=cross_silo",
                "client=sgd takes the place of client=sgd_step, which strategy=sgp is made with",
            ],
        ),
        (["strategy=sgp", "client=sgd_step", "topology=ring", "fleet=mobile"], []),
        (
            ["strategy=ditto", "client/correction=proximal", "goal=personal"],
            [
                "client/correction=proximal takes the place of client/correction=ditto, which "
                "strategy=ditto is made with"
            ],
        ),
        (
            ["strategy=per_fedavg", "client=adamw", "goal=personal"],
            [
                "client=adamw takes the place of client=per_fedavg, which strategy=per_fedavg is "
                "made with"
            ],
        ),
        (
            ["+experiment=diloco"],
            [
                "strategy=diloco sets allreduce=ring, fleet=datacenters, length=phases, "
                "client=inner_adamw"
            ],
        ),
        (
            ["data=shakespeare", "strategy=dpsgd"],
            [
                "strategy=dpsgd sets topology=ring, fleet=cross_silo, client=sgd_step",
                "data=shakespeare sets partition=natural, model=char_lstm",
            ],
        ),
    ],
)
def test_groups_that_a_member_has_chosen_are_told_and_no_others(
    overrides: list[str], lines: list[str]
) -> None:
    assert said(*overrides) == lines


@pytest.fixture
def run(call: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Runs `fl` in this process, into a folder that it returns."""

    def into(*arguments: str) -> Path:
        call(*QUICK, *arguments, f"hydra.run.dir={tmp_path}")
        return tmp_path

    return into


def test_a_run_says_it_in_its_first_line(run, capsys: pytest.CaptureFixture[str]) -> None:
    run("strategy=fedprox", "num_rounds=1", "views=false")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fl: strategy=fedprox sets client/correction=proximal"


def test_a_run_of_polled_clients_has_a_column_of_its_own_for_versions_between_polls(run) -> None:
    polled = run("strategy=quafl", "strategy.contacted=2", "num_rounds=4", "views=false")
    with open(polled / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert "poll_gap" in rows[0]
    assert "staleness" not in rows[0]
    summary = json.loads((polled / "summary.json").read_text("utf-8"))
    assert summary["staleness"] is None
    assert summary["poll_gap"]["updates"] == 8
