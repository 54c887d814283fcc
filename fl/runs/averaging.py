"""Latest weight averaging: what is evaluated is the mean of the server's last models.

Kaddour, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight
Averaging", arXiv:2209.14981; details as in the author's code (JeanKaddour/LAWA).
"""

from __future__ import annotations

from collections import deque

import numpy as np
from flwr.app import ArrayRecord

from fl.checks import at_least
from fl.flower.carried import carried
from fl.flower.records import from_record, layout_of, to_record
from fl.vectors.layout import Layout
from fl.vectors.rows import Row


class LatestWeightAverage:
    """The uniform mean of the last k models that the server has made.

        w_mean = 1/k sum_(j < k) w_(t - j every)

    Training goes on from the models as they are. Statistics of normalisation layers are averaged as
    well; entries that are no floats are those of the latest model. The sum is taken in float64 over
    copies, anew each time: a mean of equal models is that model to the last bit.

    Args:
        k: how many models, at least 1; of the first ones, as many as there are.
        every: rounds, or versions of the model, between two that count: those whose number is a
            multiple of it, and not the initial one.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, k: int, every: int = 1) -> None:
        at_least("k", k, 1)
        at_least("every", every, 1)
        self.every = every
        self._layout: Layout | None = None
        self._latest: deque[Row] = deque(maxlen=k)

    def add(self, number: int, model: ArrayRecord) -> None:
        """Takes a model; nothing if it is none of those that count.

        Args:
            number: of the round, or the version; 0 is the initial model.
            model: not kept.
        """
        if number and number % self.every == 0:
            self._layout = self._layout or layout_of(model)
            self._latest.append(from_record(self._layout, model, finite=False).copy())

    def mean(self, model: ArrayRecord) -> ArrayRecord:
        """Returns the mean of those that count, or the latest model as long as none does.

        Args:
            model: the latest.
        """
        if self._layout is None:
            return model
        total = np.zeros(self._layout.size, np.float64)
        for row in self._latest:
            total += row
        w = self._layout.rounded((total / len(self._latest)).astype(np.float32))
        return to_record(self._layout, w, carried(self._layout, model))
