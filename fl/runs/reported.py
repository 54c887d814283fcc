"""What is asked of metrics that no client or evaluation of a run reports."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from flwr.serverapp.strategy import Strategy
from omegaconf import DictConfig, OmegaConf

from fl.clients.app.outbox import METRICS
from fl.errors import ConfigError
from fl.models.metrics import CONFUSION
from fl.runs.cluster_evaluation import CLUSTER_METRICS
from fl.runs.experiment import Experiment
from fl.runs.personal import personal_metrics
from fl.runs.settings import (
    metrics_of,
    personal_of,
    target_of,
)
from fl.runs.unread import (
    canonical,
)
from fl.strategies import (
    NODE_METRICS,
    Driver,
)

_OF_CLIENTS = ("train_", "client_", "staleness")  # how names of metrics begin that updates bring


def unreported(config: DictConfig, strategy: Driver) -> Iterator[str]:
    """Yields which metrics a strategy reads that no client of ours reports."""
    there = f"clients report {', '.join(METRICS)}"
    weight = config.strategy.get("weighted_by_key", METRICS[0])
    if weight not in METRICS and not (weight is None and strategy.traits.meets == "ring"):
        yield f"strategy.weighted_by_key is {weight!r}; {there}"
    for name, metric in strategy.metrics.items():
        if metric not in METRICS:
            near = get_close_matches(metric, METRICS, n=1)
            new = "" if name in config.strategy else "+"
            remedy = f": set {new}strategy.{name}={near[0]}" if near else ""
            yield f"strategy.{name} is {metric!r}; {there}{remedy}"
    for name, reader in strategy.readers.items():
        place = canonical(config, f"strategy.{name}")
        keys = OmegaConf.select(config, place) or {}
        for metric in reader.reads:
            if metric not in METRICS:
                said = next((key for key, value in keys.items() if value == metric), None)
                what = f".{said} is" if said else f": {type(reader).__name__} reads the metric"
                yield f"{place}{what} {metric!r}; {there}"


def no_average(config: DictConfig, strategy: Driver) -> Iterator[str]:
    """Yields that a strategy has not one model, of which `lawa` could evaluate a mean."""
    if not OmegaConf.is_dict(config.lawa) or config.lawa.k is None:
        return
    if config.get("tasks"):
        yield f"lawa.k is {config.lawa.k}, and several tasks are learnt: leave it out, or tasks"
    elif strategy.traits.clusters:
        yield (
            f"lawa.k is {config.lawa.k}, and {strategy.name} has a model for each cluster of "
            "clients: leave it out, or use another strategy"
        )
    elif strategy.traits.meets == "peers":
        yield (
            f"lawa.k is {config.lawa.k}, and with {strategy.name} every node has a model of its "
            "own: leave it out, or use a strategy with a server or with outer steps"
        )


def check_target(config: DictConfig, experiment: Experiment, strategy: Strategy) -> None:
    """Refuses a target that no evaluation will report.

    Strategies and clients of others may report what they like.
    """
    target = target_of(config)
    parts = (strategy, experiment.app.rule)
    if target is None or not all(type(p).__module__.startswith(("fl.", "flwr.")) for p in parts):
        return
    names: list[str] = []
    for task, learning in (experiment.tasks or {"": experiment}).items():
        if learning.app.home.keeps:
            continue  # nothing is evaluated without the clients' own layers
        own = list(learning.app.measures.names)
        if learning.data.task == "game":
            own = ["relative_error", "loss"]
        if learning.backdoored is not None:
            own.append("attack_success_rate")
        if config.evaluate_train:
            own += ["train_objective", "dissimilarity"]
        names += own + [f"{name}/{task}" for name in own if task]
    if experiment.strategy.traits.meets == "peers":
        score = experiment.app.measures.score
        game = experiment.data.task == "game"
        own = [name for name in NODE_METRICS if not (game and "accuracy" in name)]
        names += [name.replace("accuracy", score) for name in own]
    if experiment.data.clusters is not None:
        names += CLUSTER_METRICS[
            : {"": 1, "one": 2, "mixture": 3}[experiment.strategy.traits.clusters]
        ]
    if config.lawa.k is not None:
        names += [f"latest_{name}" for name in names]
    if config.personal.every is not None:
        names += personal_metrics(
            personal_of(config), experiment.app.measures.more, keeps=experiment.app.home.keeps
        )
    names = list(dict.fromkeys(names))
    if target.metric not in names and not target.metric.startswith(_OF_CLIENTS):
        if not names:
            raise ConfigError(
                f"target.metric is {target.metric!r}, which no evaluation of this run reports, as "
                "client.local_layers stay with the clients, who are not evaluated: choose "
                "goal=personal, which is target.metric=personal_accuracy and more, or target=null"
            )
        near = get_close_matches(target.metric, names, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"target.metric is {target.metric!r}, which no evaluation of this run reports: {meant}"
            f"choose one of {', '.join(names)}, or of what clients report as train_... and "
            "client_..., or target=null"
        )


def check_confusion(config: DictConfig, experiment: Experiment) -> None:
    """Refuses a confusion matrix where no one model predicts one class of several."""
    if CONFUSION not in metrics_of(config):
        return
    if experiment.tasks or experiment.app.home.keeps:
        why = "several tasks are learnt" if experiment.tasks else "layers stay with the clients"
        raise ConfigError(
            f"metrics has {CONFUSION!r}, and {why}, so there is no one model to count for: leave "
            "it out"
        )


def check_ends_itself(config: DictConfig) -> None:
    """Raises ConfigError if a target is wrong, or is to end a run that its own app ends."""
    target = target_of(config)
    for name in ("stop", "patience") if target is not None else ():
        if value := getattr(target, name):
            raise ConfigError(
                f"target.{name} is {value!r}, and the app itself says when its run ends: leave it "
                "out"
            )
