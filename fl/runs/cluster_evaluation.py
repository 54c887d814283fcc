"""How good models are on each of the data's clusters, and whether clients are told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import nn

from fl.data import FederatedData
from fl.flower.identity import client_of
from fl.models import evaluate
from fl.randomness import generator
from fl.strategies import ClusterModels
from fl.strategies.clusters import Clusters

CLUSTER_METRICS = ("cluster_accuracy_min", "rand_index", "mixture_error")
"""What evaluations report of data whose clusters are known; the last two of methods that have
several models."""

_MOST = 1000  # training examples of a cluster by which its model is chosen


class ClusterEvaluation:
    """Evaluates models on data whose clusters are known.

    A cluster uses the model that has the lowest loss on training examples of it, at most 1,000;
    there is one model where the method has one. "accuracy" and "loss" are of all held-out examples,
    each by its cluster's model, "cluster_accuracy_min" is the accuracy on the worst cluster. Of
    what the server knows of clients, "rand_index" is the adjusted Rand index (Hubert and Arabie
    1985) of the cluster that each is mostly of against the true one, 1 if they are the same but for
    names, and about 0 by chance; "mixture_error" is the mean of |u - u_true|_1, of methods whose
    clients use mixtures; where cluster k is not known to be the data's, under the best names.

    Args:
        data: with clusters.
        load: puts the values of a record into the model.
        model: that is evaluated.
        now: returns the time by which drifting data go, s; None if it is not known.
    """

    def __init__(
        self,
        data: FederatedData,
        load: Callable[[ArrayRecord], None],
        model: nn.Module,
        now: Callable[[], float] | None,
    ) -> None:
        self._data = data
        self._load = load
        self._model = model
        self._now = now
        self._train = [_rows(data.clusters, c, draw=True) for c in range(data.num_clusters)]
        self._test = [_rows(data.test_clusters, c) for c in range(data.num_clusters)]

    def __call__(self, arrays: ArrayRecord) -> Mapping[str, float]:
        """Returns the metrics of a record with one model, or with those of clusters."""
        data, models, known = self._data, [arrays], {}
        if isinstance(arrays, ClusterModels):
            models = [arrays.record_of(w) for w in arrays.clusters.models]
            known = self._of_clients(arrays.clusters)
        fits = np.zeros((len(models), len(self._train)))  # to the training examples
        found = np.zeros((len(models), len(self._train), 2))  # loss and accuracy on those held out
        for j, model in enumerate(models):
            self._load(model)
            for c, (train, test) in enumerate(zip(self._train, self._test, strict=True)):
                if len(models) > 1:
                    fits[j, c] = evaluate(self._model, data.tensors(data.train, train)).loss
                found[j, c] = evaluate(self._model, data.tensors(data.test, test))
        used = found[fits.argmin(axis=0), np.arange(len(self._test))]
        loss, accuracy = np.average(used, axis=0, weights=[len(test) for test in self._test])
        worst = float(used[:, 1].min())
        return {
            "accuracy": float(accuracy),
            "loss": float(loss),
            "cluster_accuracy_min": worst,
            **known,
        }

    def _of_clients(self, clusters: Clusters) -> dict[str, float]:
        """Returns how far what the server knows of clients is from what they are."""
        if self._now is None:
            return {}
        t, data = self._now(), self._data
        pairs = []
        for node, mixture in clusters.mixtures.items():
            true = data.mixture(client_of(node) % data.num_partitions, t)
            if true is not None:
                pairs.append((mixture, true))
        if not pairs:
            return {}
        ours, theirs = ([int(u.argmax()) for u in side] for side in zip(*pairs, strict=True))
        found = {"rand_index": adjusted_rand_index(np.array(ours), np.array(theirs))}
        if clusters.named:
            found["mixture_error"] = mean(float(np.abs(u - v).sum()) for u, v in pairs)
        elif clusters.mixes and len(clusters.models) == data.num_clusters:
            found["mixture_error"] = _error_but_for_names(*map(np.array, zip(*pairs, strict=True)))
        return found


def adjusted_rand_index(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Returns how far two ways of putting n things into groups agree, at most 1.

        (S - E) / (M - E),   S = sum_ij C(n_ij, 2),  E = A B / C(n, 2),  M = (A + B) / 2

    with n_ij the things that are in group i of a and j of b, A = sum_i C(n_i., 2) and
    B = sum_j C(n_.j, 2). If both put all together, or all apart, it is 1.

    Args:
        a: the group of each thing, whole numbers from 0, shape (n,).
        b: likewise.
    """
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    A, B = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    most = (A + B) / 2
    expected = A * B / max(pairs(np.array([len(a)], float)), 1.0)
    return 1.0 if most == expected else (pairs(table) - expected) / (most - expected)


def _error_but_for_names(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    """Returns the mean of |u_i - v_i|_1 with the clusters of u renamed so that it is least.

    Args:
        u: mixtures of n clients, shape (n, k).
        v: likewise.
    """
    cost = np.abs(u[:, :, None] - v[:, None, :]).mean(axis=0)
    from scipy.optimize import linear_sum_assignment  # heavy, and few come here

    return float(cost[linear_sum_assignment(cost)].sum())


def _rows(clusters: NDArray[np.int64] | None, c: int, *, draw: bool = False) -> NDArray[np.int64]:
    rows = np.flatnonzero(np.array([]) if clusters is None else clusters == c)
    if not draw or len(rows) <= _MOST:
        return rows
    # Of a stream of its own, as held-out examples are: the same for every run.
    return np.sort(generator(0, "cluster evaluation", c).choice(rows, _MOST, replace=False))
