"""The models of a server's clusters, as one record that is its model."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord

from fl.flower.private import trusted_record
from fl.flower.records import RowRecord, to_record
from fl.strategies.clusters import Clusters
from fl.vectors.layout import Layout
from fl.vectors.rows import Row


class ClusterModels(RowRecord):
    """A server's model as a record, with the models of its clusters beside it.

    Who evaluates it and knows nothing of clusters evaluates the model.

    Attributes:
        clusters: their models, and who uses which.
    """

    clusters: Clusters
    _layout: Layout
    _entries: Mapping[str, Array]

    @classmethod
    def of(
        cls, layout: Layout, w: Row, entries: Mapping[str, Array], clusters: Clusters
    ) -> ClusterModels:
        """Returns the record.

        Args:
            layout: of the models.
            w: the model that stands for all, shape (d,).
            entries: what the models have outside the row.
            clusters: their models, and who uses which.
        """
        made = trusted_record(cls, dict(to_record(layout, w, entries).items()))
        made.clusters, made._layout, made._entries = clusters, layout, entries
        return made

    @property
    def each(self) -> ArrayRecord:
        """The models of all clusters as one record, their arrays named "cluster/array"."""
        models = [self.record_of(w) for w in self.clusters.models]
        return ArrayRecord(
            {f"{j}/{n}": x for j, model in enumerate(models) for n, x in model.items()}
        )

    def record_of(self, w: Row) -> ArrayRecord:
        """Returns one of the models, or a mixture of them, as a record; w has shape (d,)."""
        return to_record(self._layout, w, self._entries)
