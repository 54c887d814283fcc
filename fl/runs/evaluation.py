"""How good the server's model is: on the pooled held-out examples, after which rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from fl.errors import Enough
from fl.flower.carried import carried, carried_tensors
from fl.flower.grid_view import Clock
from fl.flower.records import from_record
from fl.models import Game, drop_weights, evaluate, global_objective
from fl.models.metrics import confusion
from fl.runs.averaging import LatestWeightAverage
from fl.runs.beside import Beside
from fl.runs.cluster_evaluation import ClusterEvaluation
from fl.runs.experiment import Experiment, Learning
from fl.runs.personal import PersonalEvaluation
from fl.runs.recorder import Recorder
from fl.strategies import NodeModels
from fl.vectors.rows import as_tensor


def central_evaluation(
    experiment: Learning, *, train: bool = False, now: Callable[[], float] | None = None
) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Returns the function that evaluates the server's model on the pooled held-out examples.

    Metrics are those of the clients' `fl.models.Measures`.
    With a backdoor, "attack_success_rate" is the share of triggered examples of other classes that
    the model takes for the attacker's class. Of a game there is no accuracy but "relative_error",
    |z - z*|^2 / |z*|^2 with z* the solution of the mean of all clients' examples.

    Where nodes learn without a server, the model is the mean of theirs; "node_accuracy" and
    "node_loss" are means over nodes of what each one's own model has on the same examples,
    "node_accuracy_min" and "node_accuracy_max" the extremes, of regression "node_mae" and so on,
    and the other metrics those of `NodeModels.facts`.

    Of data whose clusters are known there are the metrics of `ClusterEvaluation` as well.
    Where layers stay with the clients, there is no model that could be evaluated without them:
    nothing is reported but `NodeModels.facts`; nor where clients do not train.

    Args:
        experiment: its model and data are used.
        now: returns the time by which drifting data go, s; None if it is not known.
        train: add "train_objective" and "dissimilarity" of all clients' training examples; see
            `fl.models.GlobalObjective`.
    """
    home = experiment.app.home
    if home.keeps or not experiment.app.learns:

        def known(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            return MetricRecord(dict(arrays.facts if isinstance(arrays, NodeModels) else {}))

        return known
    model, layout = experiment.model(), home.whole
    drop_weights(model)
    data = experiment.data
    examples = data.test_set()
    measures = experiment.app.measures
    triggered = None
    if experiment.backdoored is not None:
        triggered = data.tensors(experiment.backdoored, slice(None))
    game = model if isinstance(model, Game) else None
    if game is not None:
        solution = game.solution(data.tensors(data.train, data.partitions.indices)[0])
    clients = [data.client(p) for p in range(data.num_partitions)] if train else []
    by_cluster = None

    def load(arrays: ArrayRecord) -> None:
        row = as_tensor(from_record(layout, arrays, finite=False))
        layout.load(model, row, carried_tensors(carried(layout, arrays)))

    if data.clusters is not None:
        by_cluster = ClusterEvaluation(data, load, model, now)

    def spread(arrays: NodeModels) -> dict[str, float]:
        losses, scores = [], []
        for own in arrays.evaluated():
            load(own)
            loss, score = evaluate(model, examples)
            losses.append(loss)
            scores.append(measures.reported(score))
        name = f"node_{measures.score}"
        means = {name: mean(scores), "node_loss": mean(losses)}
        extremes = {f"{name}_min": min(scores), f"{name}_max": max(scores)}
        return {**means, **extremes, **arrays.facts}

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        load(arrays)
        metrics: dict[str, Any] = measures(model, examples)
        if game is not None:
            metrics = {"relative_error": game.distance(solution), "loss": metrics["loss"]}
        if triggered is not None:
            metrics["attack_success_rate"] = evaluate(model, triggered)[1]
        if train:
            objective = global_objective(model, clients)
            metrics |= {
                "train_objective": objective.loss,
                "dissimilarity": objective.dissimilarity,
            }
        if isinstance(arrays, NodeModels):
            metrics |= spread(arrays)
        if by_cluster is not None:
            metrics |= by_cluster(arrays)
        drop_weights(model)
        return MetricRecord(metrics)

    return evaluate_fn


def confused(experiment: Experiment, arrays: ArrayRecord) -> NDArray[np.int64]:
    """Returns how many held-out examples of each class a model takes for which, shape (C, C)."""
    model, layout, data = experiment.model(), experiment.app.home.whole, experiment.data
    row = as_tensor(from_record(layout, arrays, finite=False))
    layout.load(model, row, carried_tensors(carried(layout, arrays)))
    return confusion(model, data.test_set(), data.num_classes)


def task_evaluation(
    experiment: Experiment, *, train: bool = False
) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Returns the function that evaluates several models, each as `central_evaluation` does.

    Its metrics are called "accuracy/task" and so on; "accuracy" is the mean over tasks, and
    "attack_success_rate" over those with a backdoor. A model whose arrays are the objects of the
    last time is not evaluated again.

    Args:
        experiment: its tasks are used.
        train: add metrics of the training examples.
    """
    functions = {
        name: central_evaluation(task, train=train) for name, task in experiment.tasks.items()
    }
    latest: dict[str, tuple[dict[str, Array], MetricRecord]] = {}

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        for task, evaluate_task in functions.items():
            start = f"{task}/"
            own = {k.removeprefix(start): x for k, x in arrays.items() if k.startswith(start)}
            known = latest.get(task)
            if known is None or any(known[0][name] is not array for name, array in own.items()):
                latest[task] = (own, evaluate_task(1, ArrayRecord(own)))
        have: Counter[str] = Counter(name for _, values in latest.values() for name in values)
        metrics: dict[str, float] = {}
        for task, (_, found) in latest.items():
            values: Mapping[str, Any] = found
            for name, value in values.items():
                metrics[f"{name}/{task}"] = value
                metrics[name] = metrics.get(name, 0.0) + value / have[name]
        return MetricRecord(dict(metrics))

    return evaluate_fn


class EvaluationSchedule:
    """Decides which models of a run are evaluated, and when a run has lasted long enough.

    Args:
        evaluate: called for the first model, the last, and those that are due.
        recorder: gets the results.
        clock: of the grid.
        num_rounds: number of the last model.
        every: rounds, or versions, between evaluations.
        every_s: s between evaluations instead: the first model after that time is evaluated.
        limit_s: time after which no model counts; None sets no limit.
        average: makes of the models the one that is evaluated; the metrics of the latest itself are
            then called "latest_accuracy" and so on. None evaluates the latest.
        complete: makes of a model the one that is evaluated in its place.
        personal: evaluates what clients would use, of the latest model; models for which that is
            due are evaluated here as well. None does not.
        beside: begins what `evaluate` then ends, for models but the first and the last whose
            metrics nobody waits for; None evaluates all at once.
    """

    lasting = ("_last", "_evaluated", "_asked", "_due_s")
    recorded = True  # the recorder need not listen: it is told

    def __init__(
        self,
        evaluate: Callable[[int, ArrayRecord], MetricRecord],
        recorder: Recorder,
        clock: Clock,
        *,
        num_rounds: int,
        every: int = 1,
        every_s: float | None = None,
        limit_s: float | None = None,
        average: LatestWeightAverage | None = None,
        complete: Callable[[ArrayRecord], ArrayRecord] = lambda arrays: arrays,
        personal: PersonalEvaluation | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.evaluate = evaluate
        self._beside = beside
        self._average = average
        self._complete = complete
        self._personal = personal
        self._recorder = recorder
        self._clock = clock
        self._num_rounds = num_rounds
        self._every = every
        self._every_s = every_s
        self._limit_s = math.inf if limit_s is None else limit_s
        self._began_s = clock.elapsed()
        self._due_s = 0.0
        self._last: tuple[int, ArrayRecord, dict[str, float]] | None = None
        self._evaluated = -1  # number of the last model evaluated
        self._asked = 0  # number of the last model with which clients were asked for theirs

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Returns the metrics of a model that is due; None for others, or if they come later.

        Raises:
            Enough: the limit has passed; or, after training, the target's `stop` or `patience`
                ends the run.
        """
        elapsed = self._clock.elapsed() - self._began_s
        if elapsed > self._limit_s and self._last is not None:
            raise Enough(f"{self._limit_s:g} s have passed")
        self._last = (server_round, arrays, self._recorder.costs(server_round))
        if self._average is not None:
            self._average.add(server_round, arrays)
        either_end = server_round in (0, self._num_rounds)
        personal = self._personal
        if personal is not None:
            personal.contact(server_round, arrays)
        if personal is not None and not either_end:
            personal = personal if personal.is_due(server_round, self._asked) else None
        if not (self._is_due(server_round, elapsed) or either_end or personal is not None):
            return None
        self._evaluated = server_round
        self._recorder.settle()
        if self._beside is not None and not either_end and personal is None:
            evaluated = self._complete(arrays)
            if not self._recorder.answered:
                self._beside.begin(server_round, evaluated)
            later = partial(self.evaluate, server_round, evaluated)
            self._recorder.evaluation(server_round, later, evaluated)
            return None
        metrics, evaluated = self._metrics(server_round, arrays)
        if personal is not None:
            self._asked = server_round
            metrics = MetricRecord({**metrics, **personal(server_round, arrays)})
        self._recorder.evaluation(server_round, metrics, evaluated)
        if server_round and (why := self._recorder.enough()) is not None:
            raise Enough(why)
        return metrics

    def _metrics(self, server_round: int, arrays: ArrayRecord) -> tuple[MetricRecord, ArrayRecord]:
        """Returns the metrics, and the model that they are of."""
        evaluated = self._complete(arrays)
        latest = self.evaluate(server_round, evaluated)
        if self._average is None:
            return latest, evaluated
        mean = self._average.mean(arrays)
        metrics = latest
        if mean is not arrays:
            evaluated = self._complete(mean)
            metrics = self.evaluate(server_round, evaluated)
        of_latest = {f"latest_{name}": x for name, x in latest.items()}
        return MetricRecord({**metrics, **of_latest}), evaluated

    @property
    def latest(self) -> ArrayRecord | None:
        """The last model there was."""
        return None if self._last is None else self._last[1]

    def close(self) -> ArrayRecord | None:
        """Returns the last model within the limit, after evaluating it if it has not been."""
        if self._last is None:
            return None
        server_round, arrays, costs = self._last
        if server_round != self._evaluated:
            self._recorder.settle()
            metrics, evaluated = self._metrics(server_round, arrays)
            self._recorder.late_evaluation(metrics, costs, evaluated)
        return self._complete(arrays)

    def _is_due(self, server_round: int, elapsed: float) -> bool:
        if self._every_s is None:
            return server_round % self._every == 0
        if elapsed < self._due_s:
            return False
        self._due_s = (elapsed // self._every_s + 1) * self._every_s
        return True
