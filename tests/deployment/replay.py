"""A deployment's schedule, replayed on the simulator; and one experiment of every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from flwr.app import ArrayRecord
from omegaconf import DictConfig

from fl import SimulatedRun, simulate
from fl.deployment.settings import compose_experiment
from fl.reports import read_run
from fl.reports.model_file import read_model
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.simulation.kernel.trace import Event
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets import durations

NEVER_S = 1e6  # of tasks whose reply the server did not wait for

COMMON = "data=digits partition=iid model.hidden=[16] round_timeout_s=600 views=false"
ALL = "strategy.fraction_train=1 strategy.min_train_nodes={n} strategy.min_available_nodes={n}"
SOME = "strategy.fraction_train=0.5 strategy.min_train_nodes=2 strategy.min_available_nodes={n}"
EVALUATE = "strategy.fraction_evaluate=1"
ROUNDS = {  # which wait for all they ask: a grid shows replies in the order of the messages
    "Flower's, compressed both ways": (
        f"strategy=fedavg {ALL} compressor=ef_topk_int8 compressor@downlink=ef21"
    ),
    "robust, clients with momentum": (
        f"strategy=fedavg {ALL} aggregator=geometric_median client=momentum"
    ),
    "vectors beside the model": f"strategy=scaffold {ALL}",
    "two roles": f"strategy=fedamd {ALL} strategy.rule.p=0.5",
    "replicas": "strategy=onebit_adam strategy.rule.warmup=1",
    "parts of the model": f"strategy=heterofl {SOME} strategy.sub_models.masked_loss=true",
    "sparse models of one mask": (
        f"strategy=feddst {SOME} strategy.rule.adjust_every=1 strategy.sub_models.density=0.3"
    ),
    "a mask that gradients move": (
        f"strategy=fedmef {SOME} strategy.rule.adjust_every=2 strategy.sub_models.density=0.3"
    ),
    "models that the server makes": (
        f"strategy=fedconv {SOME} strategy.rule.server_epochs=1 strategy.rule.filter_epochs=1 "
        "strategy.rule.weight_epochs=1"
    ),
    "adapters of unequal ranks": f"strategy=flexlora {SOME} adapter.rank=4",
    "layers that stay at home": (
        f"strategy=fedper {ALL} {EVALUATE} personal.every=null target.metric=client_accuracy"
    ),
    "models of their own": (
        f"strategy=ditto {ALL} {EVALUATE} strategy.evaluate_model=personal personal.every=null "
        "target.metric=client_accuracy"
    ),
}
PEERS = {  # rounds whose payloads are relayed by the server, which on the simulator pays nothing
    "gossip": "strategy=dpsgd topology=complete strategy.retry_s=0.5",
    "outer steps": "strategy=diloco strategy.rule.inner_steps=4 strategy.retry_s=0.5",
}
PATIENT = "strategy.patience=null"  # what the wall's clock says is no matter of the schedule
EVENTS = {  # what comes first decides
    "deadlines": (
        "strategy=over_selection strategy.clients=1 strategy.over_selection={n} "
        "strategy.deadline_s=500"
    ),
    "buffered, clients with error feedback": (
        "strategy=fedbuff strategy.concurrency={n} strategy.rule.buffer_size=2 "
        f"compressor=ef_topk_int8 {PATIENT}"
    ),
    "asynchronous, clients with MicroAdam": (
        "strategy=fedasync strategy.rule.rho=0 strategy.concurrency={n} client=microadam "
        f"{PATIENT}"
    ),
    "several models": (
        f"strategy=fedast strategy.concurrency=4 strategy.rule.buffer_size=1 {PATIENT}"
    ),
}
PAIRS = {  # what happens between two replies decides as well, and no trace says it
    "gossip in pairs": "strategy=adpsgd topology=complete strategy.retry_s=0.5",
}
FAMILIES = {**ROUNDS, **PEERS, **EVENTS, **PAIRS}


def overrides_of(family: str, num_clients: int, num_rounds: int = 3) -> str:
    """The experiment that stands for a family."""
    keys = f"{COMMON} {FAMILIES[family]}".format(n=num_clients)
    keys = f"{keys} num_clients={num_clients} num_rounds={num_rounds} evaluate_every=1"
    if family == "several models":  # each brings its own data, partition and model
        keys = " ".join(
            k for k in keys.split() if not k.startswith(("data=", "partition=", "model."))
        )
    return keys


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Task times by (client, dispatch), in the form that a Fleet takes."""

    seconds: dict[tuple[int, int], float]
    flops: None = None

    def check_clients(self, num_clients: int) -> None:
        pass

    def of(self, client: int, dispatch: int) -> float:
        return self.seconds.get((client, dispatch), NEVER_S)


def schedule_of(trace: Any) -> Recorded:
    """When replies came, as whole numbers: the i-th instant at which any came is second i.

    A task that was sent after instant j, and answered at instant i, takes i - j seconds. On a fleet
    with these times, and links that take none, every instant brings the replies that it brought.

    Args:
        trace: columns time_s, kind, client and dispatch of a deployment's trace.
    """
    instant, latest = 0, None
    sent: dict[tuple[int, int], int] = {}
    seconds = {}
    for time, kind, *task in zip(
        *(trace[name].to_pylist() for name in ("time_s", "kind", "client", "dispatch")), strict=True
    ):
        if kind == Event.DISPATCH.name.lower():
            sent[tuple(task)] = instant
        elif kind == Event.UPLOAD_END.name.lower():
            if time != latest:
                instant, latest = instant + 1, time
            seconds[tuple(task)] = float(instant - sent[tuple(task)])
    return Recorded(seconds)


def replayed(family: str, config: DictConfig, trace: Any) -> SimulatedRun:
    """The experiment on `SimGrid`; where the order of replies matters, with a deployment's."""
    fleet: Fleet = durations(config.num_clients, seed=config.seed)
    if family in EVENTS or family in PAIRS:
        fleet = dataclasses.replace(fleet, task_seconds=schedule_of(trace))
    return simulated(config, fleet)


def simulated(config: DictConfig, fleet: Fleet) -> SimulatedRun:
    """The experiment on `SimGrid`."""
    experiment = build(config)
    learnt = list(experiment.tasks.values()) or [experiment]
    return simulate(
        lambda grid, context, recorder: serve(experiment, config, grid, recorder),
        app_of(experiment),
        fleet,
        seed=config.seed,
        num_partitions=max(part.data.num_partitions for part in learnt),
        executor="serial",
        progress=False,
    )


def assert_same_model(family: str, overrides: str, directory: Path) -> None:
    """The run in a directory has the model of its replay, bit for bit; in rounds, its costs too."""
    run = read_run(directory)
    trace = pq.read_table(directory / "trace.parquet")
    again = replayed(family, compose_experiment(overrides.split()), trace)
    assert run.summary["status"] == "completed"
    assert again.arrays is not None
    if family in PAIRS:
        initial = build(compose_experiment(overrides.split())).initial()
        assert distance(directory, again.arrays, initial) < 0.5
        return
    model = read_model(directory / "model.safetensors")
    assert set(model) == set(again.arrays)
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(model[name], array.numpy())
    assert run.summary["model_sha256"] == again.summary["model_sha256"]
    assert metrics(run.history) == metrics(again.history)
    if family in ROUNDS:
        for count in ("bytes_down", "bytes_up", "client_updates"):
            assert run.summary["totals"][count] == again.summary["totals"][count]


def metrics(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What rows say of models, and in which round."""
    said = ("round", "accuracy", "client_accuracy", "client_loss")
    return [{name: row[name] for name in said if name in row} for row in history]


def distance(directory: Path, again: ArrayRecord, initial: ArrayRecord) -> float:
    """How far two models are apart, over how far training has moved one of them."""
    apart = moved = 0.0
    model = read_model(directory / "model.safetensors")
    for name, array in again.items():
        apart += float(np.sum((model[name] - array.numpy()) ** 2))
        moved += float(np.sum((array.numpy() - initial[name].numpy()) ** 2))
    return (apart / moved) ** 0.5
