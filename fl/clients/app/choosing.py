"""Which of several received models a client goes on with: the one that fits its data best.

A message may carry k models: the first where a model always is, record "arrays", the others in
records "arrays.1", "arrays.2" and so on. The client evaluates all of them on its training examples,
which is charged as k forward passes over them, trains from the one with the lowest mean loss, and
says which in the metric "model", from 0. Its reply is read, and its change compressed, against that
one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from numpy.typing import NDArray
from torch import nn

from fl.clients.app.training import moved
from fl.data import FederatedData
from fl.data.federated import IntArray
from fl.errors import ConfigError
from fl.flower.carried import carried_tensors
from fl.models import drop_weights, evaluate
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor

MODEL_METRIC = "model"
"""Metric of a reply that says from which of several models the client has trained."""

Received = tuple[Row, Mapping[str, Array]]
"""A model as it came: its row, shape (d,), and its entries outside the row."""


def model_key(arrays_key: str, j: int) -> str:
    """Returns the name of the record with model j of a message, from 0."""
    return f"{arrays_key}.{j}" if j else arrays_key


def chosen_model(metrics: Mapping[str, Any], k: int) -> int:
    """Returns from which of k models the client of a reply has trained.

    Raises:
        ConfigError: its metrics name none of them.
    """
    j = metrics.get(MODEL_METRIC) if k > 1 else 0
    if isinstance(j, bool) or not isinstance(j, int) or not 0 <= j < k:
        raise ConfigError(
            f"the reply's metric {MODEL_METRIC!r} is {j!r}; it must be a whole number below {k}, "
            "the model that the client has trained: its app does not choose among several"
        )
    return j


class Chooser:
    """Evaluates received models on a client's training examples.

    Args:
        model: only its structure is used.
        layout: of the model.
        data: the clients' examples.
        device: where the models are evaluated.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, data: FederatedData, device: torch.device
    ) -> None:
        self._structure = model
        self._layout = layout
        self._data = data
        self._device = device

    @cached_property
    def _model(self) -> nn.Module:
        return copy.deepcopy(self._structure)

    def best(self, models: Sequence[Received], rows: IntArray) -> int:
        """Returns j(i) = argmin_j F_i(theta_j), the lowest such j; 0 without examples.

        Args:
            models: at least one.
            rows: the client's examples, as rows of the training examples.
        """
        if len(models) == 1 or not len(rows):
            return 0
        return int(np.argmin(self._losses(models, rows)))

    def _losses(self, models: Sequence[Received], rows: IntArray) -> NDArray[np.float64]:
        """Returns F_i(theta_j), shape (k,): mean losses in evaluation mode; infinite for NaN."""
        x, y = self._data.tensors(self._data.train, rows)
        examples = x.to(self._device), y.to(self._device)
        losses = []
        for row, carried in models:
            entries = moved(carried_tensors(carried), self._device)
            self._layout.load(self._model, as_tensor(row).to(self._device), entries)
            loss = evaluate(self._model, examples).loss
            losses.append(math.inf if math.isnan(loss) else loss)
        drop_weights(self._model)
        return np.array(losses)
