"""Keys that have no effect beside what else is chosen, to what counts instead."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord
from flwr.serverapp import strategy as flower
from omegaconf import DictConfig

from fl.checks import read_if
from fl.runs.experiment import Learning
from fl.runs.told import unread_of_clients
from fl.simulation.world.power import CAP_KEY
from fl.strategies import Driver

read_if(
    lambda a: a["fraction_evaluate"] > 0,
    "min_evaluate_nodes",
    only="clients evaluate only with {at}fraction_evaluate above 0",
)(flower.FedAvg)

_OF_EVALUATIONS = (
    *("central_epochs", "evaluate_every", "evaluate_every_s", "evaluate_train", "metrics"),
    *("lawa.k", "lawa.every", "target.metric", "target.value", "target.mode", "target.stop"),
    *("target.patience", "personal.every", "personal.held_out", "personal.clients"),
    *("personal.local", "personal.contacts", "personal.rows"),
)


def ignored(
    strategy: Driver,
    learning: Mapping[str, Learning],
    told: ConfigRecord,
    *,
    asked: bool,
    powered: bool,
) -> dict[str, str]:
    """Returns keys that have no effect beside the other parts, to what counts instead.

    Args:
        strategy: the server's.
        learning: what is learnt, by task.
        told: what the user has every message say.
        asked: whether clients evaluate, whatever the strategy does.
        powered: whether devices have power states.
    """
    ignored = {f"strategy.{name}": why for name, why in strategy.unread.items()}
    for key in told:
        if key == CAP_KEY:
            if not powered:
                ignored[f"train_config.{key}"] = "only power reads it: set power=dvfs, for example"
        elif not any(learnt.app.reads(key) for learnt in learning.values()):
            ignored[f"train_config.{key}"] = "clients of this kind do not read it"
    for task, learnt in learning.items():
        place = f"tasks.{task}.client" if task else "client"
        for name, why in unread_of_clients(strategy, learnt.app, told).items():
            if not (asked and name == "evaluate_on"):
                ignored[f"{place}.{name}"] = why
    if not all(learnt.app.learns for learnt in learning.values()):
        ignored |= dict.fromkeys(_OF_EVALUATIONS, "client.train=false evaluates nothing")
    return ignored


def ignored_turns(config: DictConfig) -> dict[str, str]:
    """Returns the turns of low-rank compressors, which only a mean of all workers takes."""
    if config.strategy.get("compress_mean"):
        return {}
    return {"compressor*.alternating": "strategy.compress_mean=true reads it"}


def ignored_servers(strategy: Driver) -> dict[str, str]:
    """Returns the place of the fleet's one server, where each region has one."""
    if not strategy.traits.regional:
        return {}
    return {"fleet.server_region": f"with {strategy.name}, each region has a server of its own"}


def ignored_average(config: DictConfig) -> dict[str, str]:
    """Returns the keys of `lawa` that only its first one makes effective."""
    return {} if config.lawa.k is not None else {"lawa.every": "only lawa.k reads it"}


def ignored_personal(config: DictConfig, holds_out: bool) -> dict[str, str]:
    """Returns the keys of `personal` that others make ineffective.

    Args:
        config: of the run.
        holds_out: whether clients have held-out examples by themselves.
    """
    given, ignored = config.personal, {}
    if holds_out:
        ignored["personal.held_out"] = "clients have held-out examples by their data or partition"
    tuning = ("steps", "epochs", "lr", "lam")
    if given.every is None:
        own = ("clients", "local", "contacts", "rows")
        names = (*own, *(f"fine_tune.{name}" for name in tuning))
        return ignored | {f"personal.{name}": "only personal.every reads it" for name in names}
    if not (given.fine_tune.steps or given.fine_tune.epochs):
        for name in ("lr", "lam"):
            why = "only personal.fine_tune.steps or epochs reads it"
            ignored[f"personal.fine_tune.{name}"] = why
    return ignored
