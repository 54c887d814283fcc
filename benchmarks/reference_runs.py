"""Prints the hashes of a fixed list of runs: a change that only moves code changes none of them.

    python benchmarks/reference_runs.py > before.txt     # on the old commit
    python benchmarks/reference_runs.py > after.txt      # on the new one
    diff before.txt after.txt

Every line is a run's name, the hash of its event trace, and that of its final model. Hashes are
those of one machine: another processor or library rounds differently.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = [
    "data=digits",
    "model=mlp",
    "model.hidden=[16]",
    "num_clients=12",
    "num_rounds=4",
    "client.batch_size=20",
    "progress=false",
    "executor=serial",
]
UNSTEADY = ["fleet=mobile", "fleet/availability=exponential", "fleet.faults.dropout=0.1"]
UNSTEADY += ["fleet.faults.message_loss=0.05"]
LYING = ["num_byzantine=3", "attack=alie"]
TASKS = ["tasks=digits_and_synthetic"]

RUNS: dict[str, list[str]] = {
    "fedavg": ["strategy=fedavg"],
    "fedavg_ray": ["strategy=fedavg", "executor=ray", "executor.num_actors=2"],
    "fedavg_unsteady": ["strategy=fedavg", *UNSTEADY],
    "fedavg_compressed": ["strategy=fedavg", "compressor=ef_topk_int8", "compressor@downlink=ef21"],
    "fedavg_krum": ["strategy=fedavg", "fleet=cross_silo", "aggregator=nnm_krum", *LYING],
    "fedadam": ["strategy=fedadam", *UNSTEADY],
    "fedprox": ["strategy=fedprox"],
    "scaffold": ["strategy=scaffold", *UNSTEADY],
    "fednova": ["strategy=fednova"],
    "qfedavg": ["strategy=qfedavg"],
    "over_selection": ["strategy=over_selection", *UNSTEADY],
    "tifl": ["strategy=tifl", *UNSTEADY],
    "oort": ["strategy=oort", *UNSTEADY],
    "backup_workers": ["strategy=backup_workers", "num_rounds=12"],
    "dbw": ["strategy=dbw", "num_rounds=12"],
    "fedbuff": ["strategy=fedbuff", *UNSTEADY],
    "fedbuff_ray": ["strategy=fedbuff", *UNSTEADY, "executor=ray", "executor.num_actors=2"],
    "fedbuff_compressed": ["strategy=fedbuff", "compressor=qsgd", *LYING],
    "fedasync": ["strategy=fedasync", *UNSTEADY],
    "async_fedavg": ["strategy=async_fedavg", *UNSTEADY],
    "async_sgd": ["strategy=async_sgd", *UNSTEADY],
    "fedfix": ["strategy=fedfix", *UNSTEADY],
    "fedcompass": ["strategy=fedcompass"],
    "favas": ["strategy=favas"],
    "quafl": ["strategy=quafl"],
    "fedast": ["strategy=fedast", *TASKS],
    "sync_st": ["strategy=sync_st", *TASKS],
    "dpsgd": ["strategy=dpsgd", "topology=ring", *UNSTEADY],
    "dfedavgm": ["strategy=dfedavgm"],
    "dfedsam": ["strategy=dfedsam"],
    "dimat": ["strategy=dimat", "topology=matcha", *UNSTEADY],
    "sgp": ["strategy=sgp", *UNSTEADY],
    "choco": ["strategy=choco"],
    "monna": ["strategy=monna", *LYING],
    "gradient_tracking": ["strategy=gradient_tracking", "client=gradient"],
    "d2": ["strategy=d2", "client=gradient"],
    "extra": ["strategy=extra", "client=gradient"],
    "beer": ["strategy=beer", "client=gradient"],
    "relaysgd": ["strategy=relaysgd", *UNSTEADY],
    "plexus": ["strategy=plexus", "strategy.rule.sample_size=4", *UNSTEADY],
    "sa_srrw": ["strategy=sa_srrw", "strategy.walkers=3", *UNSTEADY],
    "adpsgd": ["strategy=adpsgd", *UNSTEADY],
    "diloco": ["strategy=diloco"],
    "streaming_diloco": ["strategy=streaming_diloco", "compressor=e3m0"],
    "eager_updates": ["strategy=eager_updates"],
    "data_parallel": ["strategy=data_parallel", "client=gradient"],
    "onebit_adam": ["strategy=onebit_adam", "client=gradient"],
    "demo": ["strategy=demo", "client=gradient"],
    "just_one_byte": ["strategy=just_one_byte", "client=gradient"],
}
KILLED = ["strategy=fedbuff", *UNSTEADY, "num_rounds=60", "checkpoint=journal"]


def overridden(own: list[str]) -> list[str]:
    """Returns the arguments of a run: a later one replaces an earlier one of the same key."""
    tasks = any(o.startswith("tasks=") for o in own)
    common = [o for o in SMALL if not (tasks and o.startswith(("data", "model", "client")))]
    return list({o.partition("=")[0]: o for o in [*common, *own]}.values())


def fl(directory: Path, *arguments: str) -> list[str]:
    """Returns the command line of a run in a directory."""
    return [sys.executable, "-m", "fl", *arguments, f"hydra.run.dir={directory}"]


def hashes(directory: Path) -> str:
    """Returns what a run's directory says of its trace and its model."""
    summary = json.loads((directory / "summary.json").read_text())
    return f"{summary['trace_sha256'][:16]} {summary['model_sha256'][:16]}"


def main() -> None:
    """Runs all, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of runs; none runs all")
    parser.add_argument("--quick", action="store_true", help="only fedavg and fedbuff")
    given = parser.parse_args()
    names = given.names or (["fedavg", "fedbuff"] if given.quick else [*RUNS, "killed"])
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            directory = Path(folder) / name
            if name == "killed":
                killed(directory)
            else:
                done = subprocess.run(
                    fl(directory, *overridden(RUNS[name])), capture_output=True, text=True
                )
                if done.returncode:
                    print(name, "FAILED", done.stderr.strip().splitlines()[-1:], flush=True)
                    continue
            print(name, hashes(directory), flush=True)


def killed(directory: Path) -> None:
    """Runs, kills and resumes a run."""
    process = subprocess.Popen(
        fl(directory, *overridden(KILLED)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(directory.glob("checkpoint/journal*")):
        time.sleep(0.05)
    time.sleep(1.0)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    command = [sys.executable, "-m", "fl", "resume", str(directory)]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
