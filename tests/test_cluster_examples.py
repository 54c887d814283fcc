"""What examples/cluster has: scripts and files that start a run on several machines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "ray").exists(), reason="needs `make install`")
def test_slurm_script_runs_fl_on_the_ray_that_it_starts(tmp_path):
    """Slurm's two commands are stand-ins, for one machine; Ray is not."""
    for name, line in {"scontrol": "echo 127.0.0.1", "srun": 'exec "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "node1", "JOB_NUM_NODES": "1", "JOB_ID": str(os.getpid())}
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {f"SLURM_{key}": value for key, value in slurm.items()}
    environment["SLURM_SUBMIT_DIR"] = str(ROOT)
    run = tmp_path / "run"
    words = ["num_clients=4", "num_rounds=2", "progress=false", f"hydra.run.dir={run}"]
    done = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["status"] == "completed"
    assert summary["config"]["executor"]["address"].startswith("127.0.0.1:")


def test_ray_takes_the_description_of_machines():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "machines.yaml").read_text("utf-8"))
    validate_config(prepare_config(config))


def test_kubernetes_runs_the_same_pod_for_head_and_workers():
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text("utf-8"))
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert (job["kind"], workers["template"]) == ("RayJob", cluster["headGroupSpec"]["template"])
    assert job["spec"]["entrypoint"].startswith("fl executor.address=auto ")
