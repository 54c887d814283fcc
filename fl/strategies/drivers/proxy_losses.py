"""Losses of models on examples that the server holds itself, a set for each cluster."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl.data import FederatedData
from fl.errors import ConfigError
from fl.models import drop_weights, evaluate, flops_per_example
from fl.randomness import generator
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor
from fl.vectors.threads import limit_threads


class ProxyLosses:
    """L(x; D_k) of a model x on a labelled proxy set D_k of each cluster (arXiv:2405.15407).

    Args:
        model: makes the model; only its structure is used. Its entries outside the row are those
            it is made with.
        data: with clusters. The sets are drawn from its training examples, uniformly and without
            replacement, from those of each cluster.
        clusters: K; 1 takes all examples as one cluster.
        examples: |D_k|.
        seed: of the draws.

    Attributes:
        flops: of the forward passes of one model over all sets, K |D|.

    Raises:
        ConfigError: the data have not K clusters, or one has fewer examples.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        data: FederatedData,
        *,
        clusters: int,
        examples: int,
        seed: int,
    ) -> None:
        if clusters not in (1, data.num_clusters):
            has = f"{data.num_clusters} clusters" if data.num_clusters else "no known clusters"
            raise ConfigError(
                f"rule.num_clusters is {clusters}, and data {data.name!r} has {has}, of each of "
                "which the server needs examples: use data=rotated_digits or rotated_mnist, or set "
                f"it to {data.num_clusters or 1}"
            )
        of = np.zeros(len(data.train), np.int64) if clusters == 1 else data.clusters
        self._sets = []
        for k in range(clusters):
            rows = np.flatnonzero(of == k)
            if len(rows) < examples:
                raise ConfigError(
                    f"rule.proxy_examples is {examples}, and cluster {k} of data {data.name!r} has "
                    f"{len(rows)} training examples: it must be at most so many"
                )
            rng = generator(seed, "proxy-examples", k)
            self._sets.append(data.tensors(data.train, np.sort(rng.choice(rows, examples, False))))
        self._model = model()
        self._layout = Layout.of(self._model, frozen=False)
        self._entries = self._layout.carried_of(dict(self._model.named_buffers()))
        forward = flops_per_example(self._model, data.input_shape, self._sets[0][0].dtype).forward
        self.flops = float(forward * clusters * examples)
        drop_weights(self._model)

    def __call__(self, x: Row) -> NDArray[np.float64]:
        """Returns L(x; D_1), ..., L(x; D_K) in evaluation mode, shape (K,); x has shape (d,)."""
        with limit_threads(1):
            self._layout.load(self._model, as_tensor(x), self._entries)
            losses = [evaluate(self._model, examples).loss for examples in self._sets]
            drop_weights(self._model)
        return np.array(losses)
