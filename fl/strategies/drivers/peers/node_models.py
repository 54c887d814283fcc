"""The models of nodes without a server, as one record that is their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.flower.carried import median_carried
from fl.flower.private import trusted_record
from fl.flower.records import RowRecord, to_record
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

NODE_METRICS = (
    "node_accuracy",
    "node_loss",
    "node_accuracy_min",
    "node_accuracy_max",
    "consensus_distance",
    "consensus_rms",
    "absent_nodes",
    "lost_payloads",
)
"""What evaluations of a network without a server report beside the mean model's metrics."""


class NodeModels(RowRecord):
    """The mean of the nodes' models, as a record, with the nodes' own models beside it.

    Who evaluates it and knows nothing of nodes evaluates the mean model.
    """

    _nodes: tuple[Layout, tuple[Row, ...], tuple[Mapping[str, Array], ...], tuple[int, ...]]
    _ids: tuple[int, ...]
    _facts: dict[str, float]

    @classmethod
    def of(
        cls,
        layout: Layout,
        rows: Sequence[Row],
        entries: Sequence[Mapping[str, Array]],
        evaluated: Sequence[int],
        facts: Mapping[str, float],
        ids: Sequence[int] = (),
    ) -> NodeModels:
        """Returns the record.

        Args:
            layout: of the model.
            rows: the nodes' models, n of shape (d,).
            entries: what each node's model has outside the row; the mean model has their median.
            evaluated: indices of the nodes that are to be evaluated on their own.
            facts: metrics of the round beside those of the models.
            ids: Flower's, of the nodes.
        """
        items = dict(to_record(layout, mean_of(rows), median_carried(layout, entries)).items())
        made = trusted_record(cls, items)
        made._nodes = (layout, tuple(rows), tuple(entries), tuple(evaluated))
        made._facts = dict(facts)
        made._ids = tuple(ids)
        return made

    @property
    def facts(self) -> dict[str, float]:
        """Metrics of the round, and how far the nodes are apart.

        "consensus_distance" is (1/n) sum_i |x_i - xbar|^2, "consensus_rms" its root.
        """
        _, rows, _, _ = self._nodes
        mean = mean_of(rows)
        distance = sum(_squared_distance(row, mean) for row in rows) / len(rows)
        spread = {"consensus_distance": distance, "consensus_rms": math.sqrt(distance)}
        return {**spread, **self._facts}

    def by_id(self) -> dict[int, ArrayRecord]:
        """Returns all nodes' models, by their Flower ids."""
        layout, rows, entries, _ = self._nodes
        models = zip(self._ids, rows, entries, strict=True)
        return {node: to_record(layout, row, own) for node, row, own in models}

    def evaluated(self) -> list[ArrayRecord]:
        """Returns the models of the nodes that are to be evaluated on their own."""
        layout, rows, entries, chosen = self._nodes
        return [to_record(layout, rows[i], entries[i]) for i in chosen]


def mean_of(rows: Sequence[Row]) -> Row:
    """Returns the mean of vectors, summed in float64: shape (d,), float32."""
    total = np.zeros(rows[0].shape, np.float64)
    for row in rows:
        total += row
    return (total / len(rows)).astype(np.float32)


def _squared_distance(x: Row, y: Row) -> float:
    difference = np.subtract(x, y, dtype=np.float64)
    return float(difference @ difference)
