"""How good what each client would use is, on examples of its own.

A measurement of a simulated run, as the server's evaluation is (`fl.runs.evaluation`): it takes no
virtual time and no bytes, and changes nothing. On a deployment, clients are asked by messages; see
`strategy.evaluate_model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fl.aggregation import weight_of
from fl.checks import at_least, boolean, not_negative, positive, share
from fl.clients.app.choosing import model_key
from fl.clients.app.inbox import ARRAYS_KEY, CONFIG_KEY, EVALUATED_KEY
from fl.clients.app.outbox import METRICS_KEY
from fl.errors import ConfigError
from fl.flower.identity import client_of
from fl.flower.records import not_finite
from fl.models.metrics import mean_of_each
from fl.randomness import generator
from fl.reports.client_rows import ClientRow
from fl.runs.experiment import Experiment
from fl.runs.fairness import fairness
from fl.strategies import NodeModels
from fl.strategies.drivers.rounds.cluster_models import ClusterModels

_CONTACTS = ("contact_before_accuracy", "contact_after_accuracy")
_COUNTS = ("personal_clients", "personal_left_out", "personal_trained")


@dataclass(frozen=True)
class FineTuning:
    """What clients would predict with is trained by SGD on their training examples first.

        v <- v - lr [g(v) + lambda (v - v_0)]

    Attributes:
        steps: how many; None if `epochs` is set, or there is no fine-tuning.
        epochs: passes over a client's examples; likewise.
        lr: learning rate, above 0; None is that of the clients' rule.
        lam: lambda, at least 0.

    Raises:
        ConfigError: a value is out of range, or both counts are set.
    """

    steps: int | None = None
    epochs: int | None = None
    lr: float | None = None
    lam: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "epochs"):
            if (count := getattr(self, name)) is not None:
                at_least(f"fine_tune.{name}", count, 0)
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(
                f"fine_tune.steps is {self.steps}, beside {self.epochs} epochs; set one of them, "
                "and the other to null"
            )
        if self.lr is not None:
            positive("fine_tune.lr", self.lr)
        not_negative("fine_tune.lam", self.lam)

    def told(self) -> dict[str, float]:
        """Returns what an `evaluate` message says of it."""
        values = {"steps": self.steps, "epochs": self.epochs, "lr": self.lr, "lambda": self.lam}
        if not (self.steps or self.epochs):
            return {}
        return {f"fine-tune-{key}": value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Personal:
    """Which clients are asked how good which models are, and when.

    Attributes:
        every: rounds between two evaluations; None makes none.
        held_out: share of each client's examples that is kept from training, in [0, 1), where
            clients have no held-out examples.
        clients: how many clients, drawn once from the seed; None takes all.
        local: also evaluate what local training makes of the server's model.
        contacts: also evaluate what a client brings to a server that it contacts, and what it is
            sent.
        rows: keep what every client has.
        fine_tune: of what clients would predict with.

    Raises:
        ConfigError: a value is out of range.
    """

    every: int | None = None
    held_out: float = 0.0
    clients: int | None = None
    local: bool = False
    contacts: bool = False
    rows: bool = False
    fine_tune: FineTuning = FineTuning()

    def __post_init__(self) -> None:
        for name in ("every", "clients"):
            if (count := getattr(self, name)) is not None:
                at_least(name, count, 1)
        share("held_out", self.held_out)
        for name in ("local", "contacts", "rows"):
            boolean(name, getattr(self, name))


def with_lr_of(settings: Personal, experiment: Experiment) -> Personal:
    """Returns settings whose learning rate is that of the clients' rule, if they have none."""
    tuning = settings.fine_tune
    if tuning.lr is not None:
        return settings
    lr = getattr(experiment.app.optimizer, "lr", None)
    return replace(settings, fine_tune=replace(tuning, lr=lr))


def check_personal(settings: Personal, experiment: Experiment, evaluate_on: str | None) -> None:
    """Checks that clients can evaluate what they are to.

    Args:
        settings: what to evaluate.
        experiment: of the run.
        evaluate_on: what the user's configuration has clients evaluate on; None leaves it open.

    Raises:
        ConfigError: they cannot.
    """
    every, app = settings.every, experiment.app
    settings = with_lr_of(settings, experiment)
    if every is None:
        return
    if experiment.tasks:
        raise ConfigError(
            f"personal.every is {every}, and several tasks are learnt: set it to null, or learn one"
        )
    if experiment.data.task == "game":
        raise ConfigError(
            f"personal.every is {every}, and a game has no accuracy: set it to null, or use other "
            "data"
        )
    if experiment.data.task == "regression":
        raise ConfigError(
            f"personal.every is {every}, and what it says of clients is about accuracies, which "
            "regression has none of: set it to null, and strategy.fraction_evaluate above 0 for "
            "the clients' mean errors"
        )
    if app.evaluate_on == "train" and evaluate_on is None:
        raise ConfigError(
            f"personal.every is {every}, and clients have no held-out examples: set "
            "partition.held_out=0.2, or client.evaluate_on=train for their training examples"
        )
    if settings.fine_tune.told() and settings.fine_tune.lr is None:
        raise ConfigError(
            "personal.fine_tune.lr is null, and the clients' rule has no learning rate: set it"
        )
    if settings.contacts and not experiment.strategy.traits.customises:
        raise ConfigError(
            "personal.contacts is true, and clients do not contact the server one by one for a "
            "model of their own: set it to false, or use strategy=cdfl"
        )
    lacking = (*app.rule.needs, *app.rule.requires)
    if settings.local and lacking:
        raise ConfigError(
            f"personal.local is true, and clients train with {lacking[0]!r}, which only a round "
            "has: set it to false"
        )


def personal_metrics(settings: Personal, more: Sequence[str], *, keeps: bool) -> list[str]:
    """Returns the names of the metrics that an evaluation reports.

    Args:
        settings: what is evaluated.
        more: metrics of clients beside loss and accuracy.
        keeps: whether layers stay with the clients.
    """
    models = ("personal", *(("local",) if settings.local else ()))
    models = models if keeps else ("global", *models)
    names = ("loss", *fairness([1.0], [1]), *more)
    contacts = _CONTACTS if settings.contacts else ()
    return [*(f"{model}_{name}" for model in models for name in names), *contacts, *_COUNTS]


class Aside(Protocol):
    """Asks clients what is no part of the run, as `SimGrid.aside`."""

    def __call__(self, contents: Mapping[int, RecordDict], number: int) -> dict[int, RecordDict]:
        """Returns the clients' answers."""


class PersonalEvaluation:
    """Evaluates, on each client's own examples, the server's model and what it would use.

    Metrics are those of `fl.runs.fairness.fairness` for each model, called "global_accuracy",
    "global_std" and so on, "personal_accuracy" of what the clients would predict with,
    "local_accuracy" of what local training makes of the server's model; mean losses, as
    "personal_loss", and means of other metrics that clients report, as "personal_f1", over those
    who have it; and how many clients were evaluated, and how many were not for
    want of examples, "personal_clients" and "personal_left_out"; and of how many of the former the
    server has had an update before, "personal_trained": others have what a client begins with, or
    the server's model. Byzantine clients do not count.

    "contact_before_accuracy" and "contact_after_accuracy" are means over the contacts since the
    last evaluation, of the model that the client came with and of the one it was sent.

    Where nodes learn without a server, the global model is the mean of theirs, and each has its
    own. Where the server has models of clusters, a client is sent all of them and chooses, or has
    the mixture that the server last took it for. Where layers stay with the clients there is no
    global model; what a client would predict with has its own.

    Args:
        experiment: what is learnt.
        settings: what to evaluate.
        seed: of the run.
        told: what every `train` message says, for "local".
        aside: asks clients.
        answers: how many updates of each client the server has had.
        remember: keeps results for a resumed run.
        keep: called with a round and its rows.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: Personal,
        seed: int,
        told: Mapping[str, Any],
        aside: Aside,
        answers: Mapping[int, int],
        remember: Callable[[str, list[Any], Callable[[], Any]], Any],
        keep: Callable[[int, Sequence[ClientRow]], None],
    ) -> None:
        self._settings = settings
        self._aside = aside
        self._answers = answers
        self._remember = remember
        self._keep = keep
        self._told = dict(told)
        self._keeps = experiment.app.home.keeps
        self._more = experiment.app.measures.more
        self._personalises = experiment.app.rule.personalises or bool(settings.fine_tune.told())
        clients = range(len(experiment.fleet))
        honest = [i for i in clients if i not in experiment.strategy.exchange.byzantine]
        data = experiment.data
        held_out = data.test_partitions if experiment.app.evaluate_on == "test" else None
        evaluated = data.partitions if held_out is None else held_out
        both = np.minimum(data.partitions.sizes, evaluated.sizes)
        there = [i for i in honest if both[i % data.num_partitions]]
        self._left_out = len(honest) - len(there)
        self._all = frozenset(there)
        self._latest: object = None  # contact that was evaluated
        self._contacts: list[tuple[float, float]] = []  # since the last evaluation
        if settings.clients is not None and settings.clients < len(there):
            rng = generator(seed, "personal evaluation")
            there = sorted(rng.choice(there, settings.clients, replace=False).tolist())
        self._clients: list[int] = there

    def is_due(self, server_round: int, last: int) -> bool:
        """Returns whether a model is evaluated, if that of round `last` was before."""
        every = self._settings.every
        return every is not None and server_round // every > last // every

    def contact(self, server_round: int, arrays: ArrayRecord) -> None:
        """Evaluates what the client of a contact has before and after it, if that is wanted."""
        if not (self._settings.contacts and isinstance(arrays, ClusterModels)):
            return
        clusters = arrays.clusters
        if clusters.latest is None or clusters.latest is self._latest:
            return
        self._latest = clusters.latest
        node, x = clusters.latest
        if client_of(node) not in self._all:
            return
        client = client_of(node)

        def evaluated() -> list[Any]:
            models = x, clusters.of(clusters.mixtures[node])
            records = [{client: arrays.record_of(model)} for model in models]
            answers = [self._asked(server_round, one, "global", {}) for one in records]
            return [answer[client]["accuracy"] for answer in answers]

        before, after = self._remember("contact", [server_round], evaluated)
        self._contacts.append((before, after))

    def __call__(self, server_round: int, arrays: ArrayRecord) -> dict[str, float]:
        """Returns the metrics of a round, whose model the server has now."""
        if not_finite(arrays):
            return {}
        kept = self._remember(
            "personal", [server_round], lambda: self._evaluated(server_round, arrays)
        )
        rows = [ClientRow(i, n, {k: (a, b) for k, (a, b, *_) in m.items()}) for i, n, m in kept]
        self._keep(server_round, rows)
        trained = sum(self._answers.get(row.client, 0) > 0 for row in rows)
        left_out = self._left_out + len(self._clients) - len(rows)
        counts = (len(rows), left_out, trained)
        metrics: dict[str, float] = dict(zip(_COUNTS, counts, strict=True))
        weights = [row.examples for row in rows]
        for name in rows[0].models if rows else ():
            losses, accuracies = zip(*(row.models[name] for row in rows), strict=True)
            metrics[f"{name}_loss"] = float(np.mean(losses))
            for kind, value in fairness(accuracies, weights).items():
                metrics[f"{name}_{kind}"] = value
            more = [dict(zip(self._more, m[name][2:], strict=True)) for _, _, m in kept]
            metrics |= {f"{name}_{k}": value for k, value in mean_of_each(more, self._more).items()}
        if self._contacts:
            means = np.mean(self._contacts, axis=0).tolist()
            metrics |= dict(zip(_CONTACTS, means, strict=True))
            self._contacts.clear()
        return metrics

    def _evaluated(self, server_round: int, arrays: ArrayRecord) -> list[Any]:
        """Returns (client, examples, {model: metrics}) of each, plain values.

        The metrics are loss, accuracy and what is asked for besides.
        """
        shared, own = arrays, dict.fromkeys(self._clients, arrays)
        if isinstance(arrays, NodeModels):
            shared = ArrayRecord(dict(arrays.items()))  # the mean alone
            models = {client_of(node): model for node, model in arrays.by_id().items()}
            own = {client: models[client] for client in self._clients if client in models}
        elif isinstance(arrays, ClusterModels) and arrays.clusters.mixes:
            shared = ArrayRecord(dict(arrays.items()))  # that stands for all
            known = {
                client_of(n): arrays.clusters.of(u) for n, u in arrays.clusters.mixtures.items()
            }
            own |= {i: arrays.record_of(known[i]) for i in self._clients if i in known}
        personal = self._asked(server_round, own, "personal", self._settings.fine_tune.told())
        found = {"global": personal, "personal": personal}
        if self._keeps:
            del found["global"]
        elif self._personalises or shared is not arrays:
            found["global"] = self._asked(server_round, dict.fromkeys(own, shared), "global", {})
        if self._settings.local:
            found["local"] = self._asked(server_round, own, "local", self._told)
        reports = {i: {k: self._report(metrics[i]) for k, metrics in found.items()} for i in own}
        usable = {i: of for i, of in reports.items() if all(of.values())}
        return [
            [i, int(of["personal"][0]), {name: list(report[1:]) for name, report in of.items()}]
            for i, of in usable.items()
        ]

    def _report(self, metrics: Mapping[str, Any]) -> tuple[float, ...]:
        """Returns examples, loss, accuracy and the rest that a client reports; empty without these.

        A metric that it does not have is NaN.
        """
        loss, accuracy = metrics.get("loss"), metrics.get("accuracy")
        examples = weight_of(metrics.get("num-examples"))
        if not examples or not isinstance(loss, float) or not isinstance(accuracy, float):
            return ()
        more = [metrics.get(name) for name in self._more]
        return examples, loss, accuracy, *(x if isinstance(x, float) else math.nan for x in more)

    def _asked(
        self,
        server_round: int,
        models: Mapping[int, ArrayRecord],
        which: str,
        told: Mapping[str, Any],
    ) -> dict[int, dict[str, Any]]:
        """Returns what clients report of a model of each."""
        says = ConfigRecord({**told, "server-round": server_round, EVALUATED_KEY: which})
        contents: dict[int, RecordDict] = {}  # by the model's identity
        messages = {}
        for client, model in models.items():
            if id(model) not in contents:
                contents[id(model)] = RecordDict({**_records(model), CONFIG_KEY: says})
            messages[client] = contents[id(model)]
        answers = self._aside(messages, server_round)
        found: dict[int, dict[str, Any]] = {}
        for client, answer in answers.items():
            metrics: Any = answer.metric_records[METRICS_KEY]
            found[client] = dict(metrics.items())
        return found


def _records(model: ArrayRecord) -> dict[str, ArrayRecord]:
    """Returns the records of a message with a model, or with those that a client chooses among."""
    if not isinstance(model, ClusterModels) or model.clusters.mixes:
        return {ARRAYS_KEY: model}
    models = map(model.record_of, model.clusters.models)
    return {model_key(ARRAYS_KEY, j): one for j, one in enumerate(models)}
