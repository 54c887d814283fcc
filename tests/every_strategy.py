"""Small runs of every strategy in the configuration, for tests of what holds for all of them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

import fl
from fl import SimulationError, simulate
from fl.data import Partitions
from fl.data.partition import Split
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.runs.settings import target_of
from fl.selection import Choice, Selection


def mostly_slow(names: Collection[str], quick: Collection[str] | None = None) -> list[Any]:
    """Some names as they are, every fifth if it is not said which, and the others marked slow."""
    quick = [*names][::5] if quick is None else quick
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


CLIENTS, ROUNDS = 4, 3
CONF = Path(fl.__file__).parent / "conf"

AVERAGING = [  # rounds of all clients
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedadagrad",
    "fedyogi",
    "fedprox",
    "qfedavg",
    "scaffold",
    "scaffold_m",
    "fedavg_m",
    "feddyn",
    "fedspeed",
    "fednova",
    "fedhyper_g",
    "fedhyper_sl",
    "fedhyper_cl",
    "fedamd",
    "fedau",
    "mifa",
    "proxskip",
    "savic",
    "fedvarp",
    "hierfavg",
    "multi_momentum",
    "fedamsgrad",
    "optex",
    "ifca",
    "fedsoft",
    "ditto",
    "apfl",
    "pfedme",
    "per_fedavg",
]
PUBLIC = ["fedconv", "server_training"]  # whose server learns from examples of its own
RANKS = ["flexlora"]  # whose clients have adapters of several ranks
PARTIAL = ["heterofl", "fedrolex", "random_submodels", "every_parameter_matters"]
SPARSE = ["fedmef", "fedtiny", "feddst", "prunefl"]  # whose clients hold one part
LOCAL = ["fedper", "fedrep", "fedbn", "lg_fedavg"]  # no server has the whole model
ROUNDED = ["over_selection", "oort", "tifl", "backup_workers", "dbw"]
EVENTS = [
    "fedbuff",
    "ca2fl",
    "fadas",
    "fedasync",
    "cdfl",
    "async_fedavg",
    "async_sgd",
    "fedfix",
    "fedcompass",
    "async_diloco",
    "halos",
]
TASKS = ["fedast", "sync_st"]
CODED = ["gradient_coding", "sr_sgc", "m_sgc"]
SEVERAL = [*TASKS, "sr_sgc", "m_sgc"]  # that train several models
POLLING = ["quafl", "favas"]
SERVERLESS = [
    "dpsgd",
    "dfedavg",
    "dfedavgm",
    "dfedsam",
    "dimat",
    "sgp",
    "choco",
    "relaysgd",
    "plexus",
    "monna",
    "sa_srrw",
    "adpsgd",
]
REPLICAS = ["onebit_adam", "demo", "just_one_byte"]
OUTER = [
    "diloco",
    "local_sgd",
    "streaming_diloco",
    "delayed_updates",
    "eager_updates",
    "slowmo",
    "co2",
    "overlap_local_sgd",
    "sparse_loco",
]
STAGED = ["pipeline", "split_learning"]  # whose clients hold stages of the model
GRADIENTS = [*REPLICAS, "data_parallel", "dedloc", "gradient_tracking", "d2", "extra", "beer"]
EVERY = [
    *(
        *AVERAGING,
        *PARTIAL,
        *PUBLIC,
        *RANKS,
        *SPARSE,
        *LOCAL,
        *ROUNDED,
        *EVENTS,
        *TASKS,
        *CODED,
        *POLLING,
        *SERVERLESS,
        *OUTER,
    ),
    *GRADIENTS,
    *STAGED,
]

TIMED = ["petals", "swarm"]  # which pass the time of stages, and train nothing
LEARNING = sorted({path.stem for path in (CONF / "strategy").glob("[!_]*.yaml")} - {*TIMED})

MODELS = {
    # Models that can be cut, on all four clients.
    "pipeline": ["model=mlp", "model.hidden=[8]", "strategy.pipelines=2", "strategy.steps=1"],
    "split_learning": ["model=mlp", "model.hidden=[8]", "strategy.turn_steps=1"],
    "dimat": ["model=mlp", "model.hidden=[8]"],  # which has units to match
    "fedconv": [
        *("model=mlp", "model.hidden=[8]", "strategy.rule.filter_epochs=2"),
        "strategy.rule.public_examples=50",
    ],
    "fedbn": ["model=resnet8", "model.channels=[4,4,4]"],  # which has layers that normalise
    "hierfavg": ["hierarchy.edges=2"],
    "gradient_coding": ["partition=coded"],
    "halos": ["strategy.rule.local_updates=2"],  # or regions are hardly ever heard of
    "fedtiny": ["strategy.rule.candidates=1"],  # or its first rounds train nothing
}

# What every fleet here has: four clients, all of them asked, where a strategy can say so.
SIZES = {
    "min_train_nodes": CLIENTS,
    "min_available_nodes": CLIENTS,
    "fraction_train": 1.0,
    "clients": CLIENTS,
    "concurrency": 2,
    "buffer_size": 2,
    "contacted": 2,
    "sample_size": CLIENTS,
}


def configured(strategy, *overrides):
    """Returns the configuration of a small run."""
    with initialize_config_module("fl.conf", version_base=None):
        keys = compose("config", overrides=[f"strategy={strategy}"]).strategy
        places = {"strategy": keys, "strategy.rule": keys.get("rule") or {}}
        sizes = [
            f"{place}.{key}={value}"
            for place, own in places.items()
            for key, value in SIZES.items()
            if key in own
        ]
        common = [f"num_clients={CLIENTS}", "fleet=uniform", "partition=iid", "executor=serial"]
        common += [f"strategy={strategy}", f"num_rounds={ROUNDS}", "evaluate_every=1"]
        common.append("client.batch_size=50")
        common += MODELS.get(strategy, ())
        if strategy in TASKS:  # a task has half of the clients
            common.append("tasks=digits_and_synthetic")
            sizes.append(f"strategy.concurrency={CLIENTS}")
        return compose("config", overrides=[*common, *sizes, *overrides])


def ran(strategy, *overrides, app=None, num_partitions=CLIENTS, directory=None, cost_model=None):
    """Returns the experiment and its run.

    Args:
        strategy: its name in the configuration.
        overrides: of the configuration.
        app: makes what clients run of the experiment; None is the experiment's own app.
        num_partitions: of the data.
        directory: of the run.
        cost_model: what the work of an app costs that is not the experiment's.
    """
    config = configured(strategy, *overrides)
    experiment = build(config)

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)

    run = simulate(
        server,
        app_of(experiment) if app is None else app(experiment),
        experiment.fleet,
        num_partitions=num_partitions,
        executor="serial",
        progress=False,
        directory=directory,
        target=target_of(config),
        cost_model=cost_model,
    )
    return experiment, run


def ran_in_vain(directory, *args, **kwargs):
    """Returns the summary of a run whose model never changes."""
    with pytest.raises(SimulationError, match=r"nothing was learnt: .*the model never changed"):
        ran(*args, directory=directory, **kwargs)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "failed"
    return summary


class Nobody(Selection):
    """Selects no client."""

    def select(self, state, opening):
        return Choice([]), state


def nobody(source, num_partitions):
    """Deals no example to anybody."""
    return Split(Partitions.from_arrays([[] for _ in range(num_partitions)]), None)
