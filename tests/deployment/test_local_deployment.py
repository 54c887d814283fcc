"""The checkout as a Flower app, on a real SuperLink with real SuperNodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from replay import FAMILIES, assert_same_model, overrides_of, simulated

from fl.deployment import LocalDeployment
from fl.deployment.settings import compose_experiment
from fl.errors import DeploymentError
from fl.execution.processes import marked
from fl.reports import read_run
from fl.simulation.world.fleets import uniform

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLIENTS = 2


def nodes(count):
    # Sums over several threads round differently, and the simulator's workers have one.
    return [{"partition-id": i, "num-partitions": count, "threads": 1} for i in range(count)]


@pytest.fixture(scope="module")
def deployment():
    with LocalDeployment(nodes(CLIENTS), path=[ROOT]) as local:
        yield local
    assert local.processes() == []
    assert not local.folder.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_member_of_every_family_ends_with_the_model_of_its_replay(family, deployment, tmp_path):
    overrides = overrides_of(family, CLIENTS, num_rounds=2)
    deployment.run(ROOT, {"overrides": overrides, "directory": str(tmp_path / "run")})
    assert_same_model(family, overrides, tmp_path / "run")


def test_interrupted_clients_with_time_for_all_steps_end_as_on_the_simulator(deployment, tmp_path):
    # How far a client is when it is contacted is a matter of the wall's time. Here it has always
    # done its 5 steps, in 10 s; what a faster contact would find cannot be replayed.
    overrides = (
        "strategy=favas strategy.contacted=1 strategy.waiting_s=10 strategy.interaction_s=500 "
        "strategy.local_steps=5 data=digits partition=iid num_rounds=2 num_clients=2 views=false"
    )
    deployment.run(ROOT, {"overrides": overrides, "directory": str(tmp_path / "run")})
    config, summary = compose_experiment(overrides.split()), read_run(tmp_path / "run").summary
    assert summary["model_sha256"] == simulated(config, uniform(2, 0)).summary["model_sha256"]


def test_a_run_that_fails_says_why_and_the_next_one_runs(deployment, tmp_path):
    overrides = overrides_of("robust, clients with momentum", CLIENTS)
    with pytest.raises(DeploymentError, match="the server would forge what clients send"):
        deployment.run(ROOT, {"overrides": f"{overrides} attack=alie num_byzantine=1"})
    with pytest.raises(DeploymentError, match="the experiment has num_clients=5"):
        deployment.run(ROOT, {"overrides": "num_clients=5 strategy=fedasync", "wait-s": 60})


def test_nothing_is_left_behind_when_the_block_fails():
    local = LocalDeployment(nodes(2))
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_within(local)
    assert local.processes() == []
    assert not local.folder.exists()


def fail_within(local):
    with local:
        assert len(local.processes()) >= 3
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_when_the_command_is_stopped(sign, tmp_path):
    overrides = overrides_of("buffered, clients with error feedback", CLIENTS).split()
    command = [sys.executable, "-m", "fl.deployment", "--directory", str(tmp_path / "run")]
    mark = str(tmp_path)
    process = subprocess.Popen(
        [*command, *overrides],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TEST_MARK": mark, "TMPDIR": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    await_that(
        lambda: len(marked("TEST_MARK", mark)) >= 6
    )  # the command, SuperLink, SuperNodes and theirs
    process.send_signal(sign)
    process.communicate()
    assert process.returncode == {2: 130, 15: 143, 9: -9}[sign]
    if sign == signal.SIGKILL:
        await_that(lambda: not marked("TEST_MARK", mark))
    assert marked("TEST_MARK", mark) == []


def await_that(condition):
    while not condition():
        time.sleep(0.2)
