"""With which of several received models a client goes on: the one that fits it best, or a mixture.

A message may carry k models: the first where a model always is, record "arrays", the others in
records "arrays.1", "arrays.2" and so on. The client evaluates all of them on its training examples,
which is charged as k forward passes over them, trains from the one with the lowest mean loss, and
says which in the metric "model", from 0.

If the message's configuration has "mixture-smoothing", each example votes for the model with the
lowest loss on it instead, the client goes on with the mean of the models weighted by their votes,
and tells these shares in the metric "mixture".

Its reply is read, and its change compressed, against what it went on with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from numpy.typing import NDArray
from torch import Tensor, nn

from fl.clients.app.training import moved
from fl.data import FederatedData
from fl.data.federated import IntArray
from fl.errors import ConfigError
from fl.flower.carried import carried_tensors
from fl.models import drop_weights, evaluate, losses_of
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor, weighted_sum

MODEL_METRIC = "model"
"""Metric of a reply that says from which of several models the client has trained."""

MIXTURE_METRIC = "mixture"
"""Metric of a reply with the shares of several models in what the client has trained from."""

SMOOTHING_KEY = "mixture-smoothing"
"""Key of a message that has a client mix models: the share of one that gets no vote."""

Shares = NDArray[np.float64]
"""Of k models, at least 0, with sum 1, shape (k,)."""

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


def shares_of(metrics: Mapping[str, Any], k: int) -> Shares:
    """Returns the shares of k models in what the client of a reply has trained from.

    Raises:
        ConfigError: its metrics name none.
    """
    said = metrics.get(MIXTURE_METRIC)
    shares = np.array(said if isinstance(said, list) and len(said) == k else [math.nan] * k, float)
    if not (np.all(shares >= 0) and abs(shares.sum() - 1) < 1e-6):
        raise ConfigError(
            f"the reply's metric {MIXTURE_METRIC!r} is {said!r:.80}; it must be {k} numbers, at "
            "least 0 and 1 together, the shares of the models that the client has mixed: its app "
            "does not mix models"
        )
    return shares


def mixed(layout: Layout, models: Sequence[Row], shares: Shares) -> Row:
    """Returns sum_s u_s c_s as a client has it, shape (d,), read-only.

    Args:
        layout: of the models.
        models: c_1, ..., c_k, shape (d,) each.
        shares: u.
    """
    row = layout.rounded(weighted_sum(shares, np.stack(models)))
    row.flags.writeable = False
    return row


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
        losses = self._of_each(models, rows, lambda model, known: evaluate(model, known).loss)
        return int(losses.argmin())

    def shares(self, models: Sequence[Received], rows: IntArray, smoothing: float) -> Shares:
        """Returns u, with u_s the share of the examples on which model s has the lowest loss.

        Of equal ones the first has it. Models that no example votes for have the share `smoothing`
        before all are divided by their sum; without examples all have the same.

        Args:
            models: at least one.
            rows: the client's examples, as rows of the training examples.
            smoothing: sigma, above 0.
        """
        k = len(models)
        if not len(rows):
            return np.full(k, 1.0 / k)
        losses = self._of_each(models, rows, losses_of)
        votes = np.bincount(losses.argmin(axis=0), minlength=k) / len(rows)
        u = np.where(votes > 0, votes, smoothing)
        return np.asarray(u / u.sum())

    def _of_each(
        self,
        models: Sequence[Received],
        rows: IntArray,
        losses_of: Callable[[nn.Module, tuple[Tensor, Tensor]], Any],
    ) -> NDArray[np.float64]:
        """Returns losses of k models on examples, shape (k, ...); infinite for NaN."""
        x, y = self._data.tensors(self._data.train, rows)
        examples = x.to(self._device), y.to(self._device)
        losses = []
        for row, carried in models:
            entries = moved(carried_tensors(carried), self._device)
            self._layout.load(self._model, as_tensor(row).to(self._device), entries)
            losses.append(losses_of(self._model, examples))
        drop_weights(self._model)
        found = np.array(losses)
        return np.where(np.isnan(found), math.inf, found)
