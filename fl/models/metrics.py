"""What a model is measured by on held-out examples.

Loss and accuracy are sums over batches and are always there; of regression the errors. What is
asked for besides looks at all predictions together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fl.data.federated import Task
from fl.errors import ConfigError
from fl.models.evaluation import evaluate, predictions
from fl.models.objective import per_example_loss

Scores = NDArray[np.float64]
Classes = NDArray[np.int64]


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


_OF_SCORES: Mapping[str, Callable[[Scores, Classes], float]] = {"f1": macro_f1, "auc": auc}

MORE: Mapping[Task, tuple[str, ...]] = {
    "classification": tuple(_OF_SCORES),
    "regression": (),
    "next-token": ("perplexity",),
    "game": (),
}
"""Metrics that can be asked for, by the data's task."""


@dataclass(frozen=True)
class Measures:
    """What an evaluation reports of a model, by name.

    - "loss" and "accuracy", as `fl.models.evaluate` has them;
    - of regression "loss", the mean squared error of what is predicted, and "rmse" and "mae", the
      root of the mean squared and the mean absolute error in the target's own unit;
    - asked for: "f1" and "auc" as `macro_f1` and `auc`, the latter only where it is a number;
      "perplexity", e to the loss.

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
        return (self.score, "loss", *errors, *self.more)

    def reported(self, score: float) -> float:
        """Returns the score of `fl.models.evaluate` in the unit in which it is reported."""
        return score * self.unit

    def __call__(self, model: nn.Module, examples: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Returns the metrics of a model on at least one example."""
        scored = [name for name in self.more if name in _OF_SCORES]
        if scored:
            logits = predictions(model, examples)
            y = examples[1].cpu()
            scores, classes = logits.double().numpy(), y.numpy()
            loss = per_example_loss(logits, y).double().mean().item()
            score = float((scores.argmax(axis=1) == classes).mean())
        else:
            loss, score = evaluate(model, examples)
        values = {self.score: self.reported(score), "loss": loss}
        if self.task == "regression":
            values["rmse"] = self.unit * math.sqrt(loss)
        for name in self.more:
            if name in _OF_SCORES:
                values[name] = _OF_SCORES[name](scores, classes)
            else:
                values[name] = math.exp(min(loss, 700.0))  # where e to more is no float64
        if math.isnan(values.get("auc", 0.0)):
            del values["auc"]
        return values

    def nothing(self) -> dict[str, float]:
        """Returns what is reported of no examples: 0 of everything."""
        return dict.fromkeys(self.names, 0.0)


def mean_of_each(found: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """Returns the mean of each metric over clients, of those who have it; NaN if none does."""
    said = {name: [one[name] for one in found if not math.isnan(one[name])] for name in names}
    return {name: float(np.mean(of)) if of else math.nan for name, of in said.items()}
