"""The content of a message whose records were made here."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.flower.private import Records, trusted_record, view_of


class Content(RecordDict):
    """A `RecordDict` of trusted records, whose views by kind cost a tenth.

    Flower makes `metric_records` and the like anew at every access, checking every key and record
    twice; a strategy asks some five times for each reply. The views behave as Flower's: what is
    changed in them is changed here.
    """

    @property
    def array_records(self) -> Records[str, ArrayRecord]:
        """The records of arrays."""
        return view_of(self, ArrayRecord)

    @property
    def metric_records(self) -> Records[str, MetricRecord]:
        """The records of metrics."""
        return view_of(self, MetricRecord)

    @property
    def config_records(self) -> Records[str, ConfigRecord]:
        """The records of configuration."""
        return view_of(self, ConfigRecord)

    def deflate(self) -> bytes:
        """Returns Flower's wire form, under the name of `RecordDict`."""
        return RecordDict(dict(self.items())).deflate()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as its records."""
        return content_of, (dict(self.items()),)


def content_of(items: dict[str, Any]) -> Content:
    """Returns a message's content; the dictionary of Flower records becomes its own."""
    return trusted_record(Content, items)
