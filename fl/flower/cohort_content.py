"""The one answer of clients that have trained together: a matrix of models, lists of reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fl.flower.arrays import RowArray
from fl.flower.content import content_of
from fl.flower.private import trusted_record
from fl.flower.records import RowRecord
from fl.vectors.rows import Row

_ARRAYS, _METRICS, _ROWS = "arrays", "metrics", "rows"


def cohort_content(rows: Row, metrics: Mapping[str, list[Any]]) -> RecordDict:
    """Returns the content of an answer.

    Args:
        rows: a model for each client, shape (n, d), float32; nobody may change them any more.
        metrics: what the clients report, lists of n numbers.
    """
    flat = rows.reshape(-1)
    flat.flags.writeable = False
    models = trusted_record(RowRecord, {_ROWS: RowArray(flat, 0, rows.shape)})
    return content_of({_ARRAYS: models, _METRICS: trusted_record(MetricRecord, dict(metrics))})


def read_cohort(content: RecordDict) -> tuple[Row, list[dict[str, Any]]]:
    """Returns the models in an answer, shape (n, d), read-only, and what each client reports."""
    models = cast(ArrayRecord, content[_ARRAYS])
    columns: Mapping[str, Any] = cast(MetricRecord, content[_METRICS])
    names = list(columns)
    reports = [dict(zip(names, each, strict=True)) for each in zip(*columns.values(), strict=True)]
    return models[_ROWS].numpy(), reports
