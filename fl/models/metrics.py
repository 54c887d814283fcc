"""What a model is measured by on held-out examples.

Loss and accuracy are sums over batches and are always there; of regression the errors. What is
asked for besides looks at all predictions together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl.data.federated import Task
from fl.errors import ConfigError
from fl.models.evaluation import evaluate, predictions
from fl.models.objective import correct, per_example_loss

Scores = NDArray[np.float64]
Classes = NDArray[np.int64]
Labels = NDArray[np.bool_]


def macro_f1(scores: Scores, y: Classes) -> float:
    """Returns the mean over classes of 2 TP / (2 TP + FP + FN), with the largest score's class.

    The mean is over the classes that examples have, or are taken for.

    Args:
        scores: shape (n, C), n >= 1.
        y: shape (n,), 0 to C - 1.
    """
    predicted, C = scores.argmax(axis=1), scores.shape[1]
    true, taken = (np.bincount(of, minlength=C) for of in (y, predicted))
    hits = np.bincount(y[predicted == y], minlength=C)
    there = true + taken > 0
    return float((2 * hits[there] / (true + taken)[there]).mean())


def auc(scores: Scores, y: Classes) -> float:
    """Returns the area under the ROC curve: P(s_+ > s_-) + P(s_+ = s_-) / 2.

    Of two classes that is of the second's score less the first's; of more the mean over classes of
    each one's probability against the rest, over the classes that some examples have and some have
    not. NaN if there is none.

    Args:
        scores: logits, shape (n, C), C >= 2.
        y: shape (n,), 0 to C - 1.
    """
    if scores.shape[1] == 2:
        return _area(scores[:, 1] - scores[:, 0], y == 1)
    # Not the logit: what is compared is how likely the class is, among the others of an example.
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = odds / odds.sum(axis=1, keepdims=True)
    areas = [_area(shares[:, c], y == c) for c in np.unique(y)]
    known = [area for area in areas if not math.isnan(area)]
    return float(np.mean(known)) if known else math.nan


def _area(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """Returns the Mann-Whitney statistic, divided by the number of pairs; NaN without any."""
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equal scores their mean
    return float((ranks[place][positive].sum() - n * (n + 1) / 2) / (n * m))


def label_f1(scores: Scores, y: Labels) -> float:
    """Returns the mean over labels of 2 TP / (2 TP + FP + FN), a label being taken above 0.

    The mean is over the labels that examples have, or are taken to have.

    Args:
        scores: logits, shape (n, C).
        y: shape (n, C).
    """
    hits, true, taken = _counted(scores, y)
    there = true + taken > 0
    return float((2 * hits[there] / (true + taken)[there]).mean()) if there.any() else math.nan


def micro_f1(scores: Scores, y: Labels) -> float:
    """Returns 2 TP / (2 TP + FP + FN) of the counts of all labels; arguments as of `label_f1`."""
    hits, true, taken = (int(each.sum()) for each in _counted(scores, y))
    return 2 * hits / (true + taken) if true + taken else math.nan


def _counted(scores: Scores, y: Labels) -> tuple[Classes, Classes, Classes]:
    predicted = scores > 0
    return (predicted & y).sum(axis=0), y.sum(axis=0), predicted.sum(axis=0)


def label_auc(scores: Scores, y: Labels) -> float:
    """Returns the mean area under the ROC curve of the labels that some have and some have not."""
    areas = [_area(of, true) for of, true in zip(scores.T, y.T, strict=True)]
    known = [area for area in areas if not math.isnan(area)]
    return float(np.mean(known)) if known else math.nan


def mean_average_precision(scores: Scores, y: Labels) -> float:
    """Returns the mean over labels, of those that some example has, of the average precision.

    That is sum_k (R_k - R_(k-1)) P_k over the thresholds, of which each different score is one, in
    descending order, with P the precision and R the recall. Arguments as of `label_f1`.
    """
    found = [_precision(of, true) for of, true in zip(scores.T, y.T, strict=True) if true.any()]
    return float(np.mean(found)) if found else math.nan


def _precision(scores: Scores, positive: Labels) -> float:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of the examples with a score
    hits = positive[order].cumsum()[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


_OF_SCORES: Mapping[Task, Mapping[str, Callable[[Scores, Any], float]]] = {
    "classification": {"f1": macro_f1, "auc": auc},
    "multi-label": {
        "f1": label_f1,
        "f1_micro": micro_f1,
        "auc": label_auc,
        "map": mean_average_precision,
    },
}

CONFUSION = "confusion"
"""Asks for the counts of `confusion`, which are no metric of a model but a file of the run."""

MORE: Mapping[Task, tuple[str, ...]] = {
    "classification": (*_OF_SCORES["classification"], CONFUSION),
    "multi-label": tuple(_OF_SCORES["multi-label"]),
    "regression": (),
    "next-token": ("perplexity",),
    "game": (),
}
"""Metrics that can be asked for, by the data's task."""


@dataclass(frozen=True)
class Measures:
    """What an evaluation reports of a model, by name.

    - "loss" and "accuracy", as `fl.models.evaluate` has them;
    - of labels "accuracy", the share of them that are predicted correctly;
    - of regression "loss", the mean squared error of what is predicted, and "rmse" and "mae", the
      root of the mean squared and the mean absolute error in the target's own unit;
    - asked for: "f1" and "auc" as `macro_f1` and `auc`, of labels as `label_f1` and `label_auc`,
      with "f1_micro" as `micro_f1` and "map" as `mean_average_precision`, each only where it is a
      number; "perplexity", e to the loss.

    Attributes:
        task: of the data.
        more: metrics beside those that are always there.
        unit: of regression, as of `fl.data.Source`.

    Raises:
        ConfigError: data of this task have no such metric.
    """

    task: Task = "classification"
    more: tuple[str, ...] = ()
    unit: float = 1.0

    def __post_init__(self) -> None:
        for name in self.more:
            if name not in MORE[self.task]:
                there = ", ".join(MORE[self.task])
                raise ConfigError(
                    f"metrics has {name!r}, and data for {self.task} have "
                    + (f"{there}: choose of these" if there else "none besides: set it to []")
                )

    @property
    def score(self) -> str:
        """The metric that is beside the loss in every evaluation."""
        return "mae" if self.task == "regression" else "accuracy"

    @property
    def names(self) -> tuple[str, ...]:
        """What is reported."""
        errors = ("rmse",) if self.task == "regression" else ()
        return (self.score, "loss", *errors, *self._said)

    @property
    def _said(self) -> tuple[str, ...]:
        return tuple(name for name in self.more if name != CONFUSION)

    def reported(self, score: float) -> float:
        """Returns the score of `fl.models.evaluate` in the unit in which it is reported."""
        return score * self.unit

    def __call__(self, model: nn.Module, examples: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Returns the metrics of a model on at least one example."""
        of_scores = _OF_SCORES.get(self.task, {})
        if any(name in of_scores for name in self.more):
            logits = predictions(model, examples)
            y = examples[1].cpu()
            scores, true = logits.double().numpy(), y.numpy()
            if self.task == "multi-label":
                true = true > 0
            loss = per_example_loss(logits, y).double().mean().item()
            score = correct(logits, y).double().mean().item()
        else:
            loss, score = evaluate(model, examples)
        values = {self.score: self.reported(score), "loss": loss}
        if self.task == "regression":
            values["rmse"] = self.unit * math.sqrt(loss)
        for name in self._said:
            if name in of_scores:
                values[name] = of_scores[name](scores, true)
            else:
                values[name] = math.exp(min(loss, 700.0))  # where e to more is no float64
        return {
            name: value
            for name, value in values.items()
            if name not in of_scores or not math.isnan(value)
        }

    def nothing(self) -> dict[str, float]:
        """Returns what is reported of no examples: 0 of everything."""
        return dict.fromkeys(self.names, 0.0)


def confusion(
    model: nn.Module, examples: tuple[Tensor, Tensor], num_classes: int
) -> NDArray[np.int64]:
    """Returns how many examples of each class a model takes for which, shape (C, C).

    Args:
        model: maps inputs to logits.
        examples: inputs, and classes, shape (n,).
        num_classes: C; row c is of the examples of class c.
    """
    taken = predictions(model, examples).argmax(dim=1)
    pairs = examples[1].cpu() * num_classes + taken
    counts = torch.bincount(pairs, minlength=num_classes**2)
    return np.asarray(counts.reshape(num_classes, num_classes).numpy())


def mean_of_each(found: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """Returns the mean of each metric over clients, of those who have it; NaN if none does."""
    said = {name: [one[name] for one in found if not math.isnan(one[name])] for name in names}
    return {name: float(np.mean(of)) if of else math.nan for name, of in said.items()}
