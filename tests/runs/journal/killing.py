"""Runs that are killed at a chosen byte of their journal, and what a run must leave behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from fl.reports.history import read_history
from fl.runs.journal import journal as journal_module
from fl.runs.journal.claim import FOLDER
from fl.runs.journal.journal import FILE
from fl.runs.run import run_experiment

ROOT = Path(__file__).parents[3]

SMALL = ["data=digits", "model=mlp", "model.hidden=[8]", "executor=serial", "partition=iid"]
SMALL += ["progress=false", "target=null", "views=false"]

# Clients go offline, drop out, crash and lose messages.
HARSH_FLEET = [
    *("fleet/availability=exponential", "fleet.availability.mean_on_s=0.3"),
    *("fleet.availability.mean_off_s=0.1", "fleet.faults.dropout=0.1", "fleet.faults.crash=0.1"),
    *("fleet.faults.message_loss=0.05", "fleet.faults.detection_s=0.05", "round_timeout_s=2"),
]
# And keep Adam's moments: a state that is not what it was shows in the model.
HARSH = ["client=adamw", "client.rule.keep_moments=true", "client.batch_size=8", *HARSH_FLEET]
EARLY = ["strategy.fraction_train=0.5", "strategy.min_train_nodes=2"]
EARLY += ["strategy.min_available_nodes=2"]

RUNS = {
    "stock": [*SMALL, *HARSH, *EARLY, "strategy=fedavgm", "num_clients=16", "num_rounds=8"],
    "aggregate": [
        *(*SMALL, *HARSH, *EARLY, "strategy=fedavg", "num_clients=16", "num_rounds=8"),
        "client/local_layers=last",
    ],
    # Clients keep nothing: no messages, and each round trains as one wave; resumed from snapshots.
    "arrays": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=fedavg", "num_clients=16", "num_rounds=8"),
        *("client.batch_size=8", "checkpoint.snapshot_s=1e-9"),
    ],
    "fedbuff": [*SMALL, *HARSH, "strategy=fedbuff", "num_clients=16", "num_rounds=10"],
    "gossip": [
        *(*SMALL, *HARSH, "strategy=dpsgd", "client.local_epochs=null", "client.local_steps=4"),
        *("num_clients=9", "num_rounds=10", "topology=torus"),
    ],
    "diloco": [
        *(*SMALL, "strategy=diloco", "strategy.rule.inner_steps=5", "strategy.drop=0.2"),
        *("compressor=ef21", "fleet=uniform", "num_clients=4", "num_rounds=12"),
    ],
    "compressed": [
        *(*SMALL, "strategy=scaffold", "compressor=ef_topk", "compressor@downlink=ef21"),
        *("num_clients=10", "num_rounds=6", "fleet/availability=always"),
        "fleet.faults.crash=0.1",
    ],
    "foreign": [
        *(f"app={ROOT / 'examples' / 'fedbuff_app'}", "executor=serial", "views=false"),
        *("progress=false", "target=null", "num_clients=8", "+run_config.versions=8"),
    ],
}
"""One run for each kind of driver: a member added here is killed by every test."""

CLUSTERS = [word for word in SMALL if word not in ("data=digits", "partition=iid")]
KEEPING = {
    "parts that stay": [
        *(*SMALL, *HARSH, *EARLY, "strategy=heterofl", "num_clients=8", "num_rounds=5"),
        "strategy.sub_models.masked_loss=true",
    ],
    "a batch that volunteers gather": [
        *(*SMALL, *HARSH_FLEET, "strategy=dedloc", "num_clients=8", "num_rounds=8"),
        *("strategy.rule.target_batch=128", "client.batch_size=8", "strategy.rule.delayed=true"),
        *("strategy.waiting_s=0.05", "compressor=ef_topk", "allreduce=ring"),
    ],
    "parts that change": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=random_submodels", "num_clients=8"),
        "num_rounds=5",
    ],
    "statistics that nobody keeps": [
        *(word for word in SMALL if not word.startswith("model")),
        *(*HARSH_FLEET, *EARLY, "strategy=fedrolex", "num_clients=8", "num_rounds=4"),
        *("model=resnet8", "model.groups=null", "model.channels=[4,4,4]"),
        *("strategy.sub_models.static_batch_norm=true", "strategy.sub_models.masked_loss=true"),
    ],
    "rounds as arrays": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=fedavg", "client.train=false"),
        *("num_clients=16", "num_rounds=12"),
    ],
    "a server that trains": [
        *(*SMALL, *HARSH, *EARLY, "strategy=server_training", "num_clients=8", "num_rounds=5"),
    ],
    "a mask that moves": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=fedmef", "num_clients=8", "num_rounds=6"),
        *("strategy.rule.adjust_every=2", "strategy.rule.adjust_until=6"),
    ],
    "aggregators that die": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=hierfavg", "num_clients=8", "num_rounds=5"),
        *("hierarchy.edges=3", "hierarchy.failure=0.2", "hierarchy.on_failure=lost"),
    ],
    "software that takes time": [
        *(*SMALL, *HARSH_FLEET, "strategy=fedbuff", "num_clients=8", "num_rounds=6"),
        *("runtime=flower", "runtime.sustained=0.5"),  # an app takes seconds to start
        *("fleet.availability.mean_on_s=30", "fleet.availability.mean_off_s=3"),
    ],
    "batteries that run low": [
        *(*SMALL, *HARSH_FLEET[3:], "strategy=fedbuff", "num_clients=8", "num_rounds=6"),
        *("fleet/availability=always", "power=dvfs", "power.choice=deadline"),
        *("power.within_s=0.1", "battery=phone", "battery.capacity_j=0.2", "battery.other_w=0.01"),
        *("battery.charger_w=0.5", "fleet/availability@battery.plugged=exponential"),
        *("battery.plugged.mean_on_s=0.3", "battery.plugged.mean_off_s=0.3"),
        *("fleet/radio=states", "fleet.radio={4g:{tail_s:0.001},5g:{tail_s:0.001}}"),
    ],
    "estimates of gradients": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=fedavg", "num_clients=8", "num_rounds=5"),
        *("client=momentum", "client/estimator=two_point", "client.estimator.density=0.5"),
        "client.batch_size=8",
    ],
    "filters that learn": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=fedconv", "num_clients=8", "num_rounds=5"),
        *("strategy.rule.public_examples=40", "strategy.rule.filter_epochs=1"),
        *("strategy.rule.server_epochs=1", "strategy.rule.weight_epochs=1"),
    ],
    "adapters of several ranks": [
        *(*SMALL, *HARSH_FLEET, *EARLY, "strategy=flexlora", "adapter.rank=4", "num_clients=8"),
        "num_rounds=5",
    ],
    "layers at home": [
        *(*SMALL, *HARSH, *EARLY, "strategy=fedper", "num_clients=8", "num_rounds=5"),
        *("personal.every=2", "personal.rows=true"),
    ],
    "all-reduces that fail": [
        *(*SMALL, *HARSH_FLEET[:3], "strategy=diloco", "strategy.rule.inner_steps=5"),
        *("allreduce=int8_ring", "strategy.on_failure=alone", "strategy.detection_s=0.02"),
        *("strategy.heartbeat_s=0.01", "strategy.retries=0"),
        *("fleet=mobile", "num_clients=4", "num_rounds=12", "strategy.min_available_nodes=2"),
    ],
    "batches dealt by measured speeds": [
        *(*SMALL, *HARSH_FLEET[:3], "strategy=data_parallel", "num_clients=4", "num_rounds=12"),
        *("+strategy.sharding._target_=fl.strategies.Cephalo", "+strategy.sharding.batch=32"),
        *("fleet=mobile", "strategy.min_available_nodes=2"),
    ],
    "links found slow": [
        *(*SMALL, *HARSH_FLEET[:3], "strategy=diloco", "strategy.rule.inner_steps=5"),
        *("num_clients=6", "num_rounds=12", "strategy.workers=5", "fleet=mobile"),
        *("+strategy.slow_links._target_=fl.collectives.SlowLinks", "strategy.retries=1"),
        *("strategy.on_failure=retry", "strategy.detection_s=0.02"),
        *("strategy.min_available_nodes=2",),
    ],
    "combinations of several models": [
        *("executor=serial", "progress=false", "target=null", "views=false", "strategy=sr_sgc"),
        *("strategy.rule.code=cyclic", "strategy.rule.lam=2", "strategy.optimizer.momentum=0.5"),
        *(*HARSH_FLEET[3:], "fleet=cross_silo", "num_clients=5", "num_rounds=8"),
    ],
    "models that nodes merge": [
        *(*SMALL, *HARSH, "strategy=dimat", "num_clients=6", "num_rounds=5"),
        *("topology=matcha", "topology@topology.base=complete", "strategy.rule.pretraining=2"),
    ],
    "stages": [
        *(*SMALL, "strategy=pipeline", "strategy.pipelines=2", "strategy.steps=2"),
        *("strategy.turn_steps=1", "strategy.drop=0.1", "strategy/recovery=redundant"),
        *("compressor=qsgd", "fleet=uniform", "fleet.faults.message_loss=0.05"),
        *("fleet.faults.crash=0.01", "num_clients=5", "num_rounds=5", "client.batch_size=8"),
    ],
    "servers of regions": [
        *(*SMALL, "strategy=halos", "strategy.rule.local_updates=2", "strategy.rule.inner_steps=4"),
        *("fleet=datacenters", "fleet.faults.message_loss=0.05", "fleet.faults.crash=0.05"),
        *("num_clients=8", "num_rounds=12"),
    ],
    "samples without a server": [
        *(*SMALL, *HARSH_FLEET, "strategy=plexus", "strategy.rule.sample_size=3", "num_clients=8"),
        *("num_rounds=6", "strategy.aggregation_timeout_s=1", "strategy.ping_timeout_s=0.05"),
        *("strategy.retry_s=0.1", "strategy.fewest=1", "fleet=mobile"),
    ],
    "models of clusters": [
        *(*CLUSTERS, *HARSH, *EARLY, "strategy=ifca", "num_clients=8", "num_rounds=5"),
    ],
    "models of clusters, clients that call": [
        *(*CLUSTERS, *HARSH, "strategy=cdfl", "partition.drift_s=1"),
        *("num_clients=8", "num_rounds=12"),
    ],
}
"""One run for each kind of what else a run keeps: parts, personal layers, models of clusters."""


@dataclass
class Run:
    """A configuration, composed once.

    Args:
        overrides: of the command line.
    """

    overrides: list[str]
    config: DictConfig = field(init=False)

    def __post_init__(self) -> None:
        with initialize_config_module("fl.conf", version_base=None):
            self.config = compose("config", self.overrides, return_hydra_config=True)

    def __call__(self, directory: Path, *, resume: bool = False) -> None:
        """Runs to the end in this process."""
        config = self.config.copy()
        OmegaConf.set_readonly(config.hydra, False)
        with open_dict(config):
            config.hydra.runtime.output_dir = str(directory)
            config.hydra.runtime.cwd = str(ROOT)
            config.hydra.job.config_name = "config"
            config.hydra.runtime.config_sources = []
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            run_experiment(
                OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]), resume=resume
            )
        finally:
            HydraConfig.instance().cfg = before

    def killed(self, directory: Path, at: int, *, resume: bool) -> bool:
        """Runs in another process, which dies when its journal has `at` bytes.

        Returns:
            Whether it died; if not, it completed.
        """
        child = os.fork()
        if child == 0:
            try:
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
                die_at(at)
                self(directory, resume=resume)
            except BaseException:
                (directory / "child.txt").write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        note = directory / "child.txt"
        assert os.WEXITSTATUS(status) == 0, note.read_text() if note.exists() else status
        return False


def die_at(limit: int) -> None:
    """Kills this process when a journal gets its byte number `limit`, which is still written."""
    write = journal_module._write

    def dying(descriptor: int, size: int, parts: list[Any]) -> None:
        data = b"".join(parts)
        if size + len(data) >= limit:
            os.write(descriptor, data[: max(0, limit - size)])
            os.kill(os.getpid(), signal.SIGKILL)
        write(descriptor, size, parts)

    journal_module._write = dying


def journal_of(directory: Path) -> Path:
    return directory / FOLDER / FILE


def outcome(directory: Path) -> dict[str, Any]:
    """Returns all that a run leaves behind, but for host time and what this process counted."""
    summary = json.loads((directory / "summary.json").read_text("utf-8"))
    assert summary["status"] == "completed"
    del summary["totals"]["wall_s"], summary["versions"]["commit"]
    summary["extra"].pop("batches")
    for record in summary["best"].values():
        record.pop("wall_s", None)
    rows = [
        {k: v for k, v in row.items() if k != "wall_s"}
        for row in read_history(directory / "metrics.csv")
    ]
    return {
        "summary": summary,
        "rows": rows,
        "trace": pq.read_table(directory / "trace.parquet").to_pydict(),
        "files": sorted(path.name for path in directory.iterdir()),
    }
