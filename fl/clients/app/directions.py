"""What the estimates of a task's gradients are along."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fl.clients.app.training import Training
from fl.clients.estimator import Estimator
from fl.randomness import generator


class Directions:
    """The stream (seed, "directions", client, message_id) of a task, step by step.

    Args:
        task: whose.
        estimator: says how many vectors a step takes.
        size: numbers of a vector, p.
    """

    def __init__(self, task: Training, estimator: Estimator, size: int) -> None:
        self._stream = generator(task.seed, "directions", task.client, task.message_id)
        self._shape = estimator.draws, size

    def next(self) -> Tensor:
        """Returns those of the next step, numbers of N(0, 1), float32, shape (draws, p)."""
        return torch.from_numpy(self._stream.standard_normal(self._shape, dtype=np.float32))
