"""From events to intervals: when each task was downloading, computing and uploading."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fl.simulation.kernel.trace import Event, Trace

STAGES = ("download", "compute", "upload")
ALL_REDUCE = len(STAGES)
"""Of a span of `all_reduces`, where another has an index into `STAGES`."""

STARTS = (Event.DOWNLOAD_START, Event.COMPUTE_START, Event.UPLOAD_START)
ENDS = (Event.DOWNLOAD_END, Event.COMPUTE_END, Event.UPLOAD_END)
STOPS = (
    Event.DROPOUT,
    Event.CRASH,
    Event.DEPARTURE,
    Event.DOWNLOAD_LOST,
    Event.UPLOAD_LOST,
    Event.CANCELLED,
)
# Nothing else ends work: a task whose message has expired goes on, unless it was waiting, and an
# error is a reply too.
LAST = (Event.UPLOAD_END, *STOPS)
WAITS = (Event.DISPATCH, Event.DOWNLOAD_END)  # the latest event of a task that waits


@dataclass(frozen=True)
class Spans:
    """Intervals of work, one row each.

    Args:
        client: index in the fleet, shape (n,), int64.
        dispatch: the client's task number, (n,), int64.
        stage: index into `STAGES`, or `ALL_REDUCE`, (n,), int8.
        start, end: virtual s, (n,), float64, start <= end.
        finished: (n,), bool; False if a fault, or the end of the run, cut the stage short.
    """

    client: NDArray[np.int64]
    dispatch: NDArray[np.int64]
    stage: NDArray[np.int8]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    finished: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.client)

    def beside(self, other: Spans) -> Spans:
        """Returns these and others, in no order."""
        columns = (field.name for field in fields(self))
        return Spans(*(np.append(getattr(self, name), getattr(other, name)) for name in columns))


def spans(trace: Trace) -> Spans:
    """Returns the stages of all tasks.

    Rows are in order of (client, dispatch, start). A stage ends with its own end event, or with the
    fault that stopped the task. A stage that nothing ended lasts until the trace's last event.
    """
    time, client, dispatch, kind, _ = _in_task_order(trace, (*STARTS, *ENDS, *STOPS))
    at = np.flatnonzero(np.isin(kind, STARTS))
    closed = _same_task_as_next(client, dispatch)[at]
    following = np.minimum(at + 1, len(time) - 1)
    last = trace.time[-1] if len(trace) else 0.0
    end_kind = kind[at] + 1  # each end's number follows its start's
    return Spans(
        client=client[at],
        dispatch=dispatch[at],
        stage=np.searchsorted(STARTS, kind[at]).astype(np.int8),
        start=time[at],
        end=np.where(closed, time[following], last),
        finished=closed & (kind[following] == end_kind),
    )


def all_reduces(trace: Trace) -> Spans:
    """Returns when each client took part in all-reduces, in the order in which these ended.

    It is not known of other transfers among peers: the trace has when they arrived.
    """
    kind = trace.kind
    rows = np.flatnonzero(np.isin(kind, (Event.ALL_REDUCE, Event.ALL_REDUCE_FAILED)))
    end = trace.time[rows]
    return Spans(
        client=trace.client[rows],
        dispatch=trace.dispatch[rows],
        stage=np.full(len(rows), ALL_REDUCE, np.int8),
        start=end - trace.value[rows],
        end=end,
        finished=kind[rows] == Event.ALL_REDUCE,
    )


def _in_task_order(
    trace: Trace, kinds: tuple[Event, ...]
) -> tuple[
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int8],
    NDArray[np.int64],
]:
    """Returns time, client, dispatch, kind and row of these events, each task's together."""
    kind = trace.kind
    rows = np.flatnonzero(np.isin(kind, kinds))
    client = trace.client[rows]
    dispatch = trace.dispatch[rows]
    order = np.lexsort((rows, dispatch, client))
    rows = rows[order]
    time = trace.time[rows]
    return time, client[order], dispatch[order], kind[rows], rows


def _same_task_as_next(client: NDArray[np.int64], dispatch: NDArray[np.int64]) -> NDArray[np.bool_]:
    same = np.zeros(len(client), dtype=bool)
    same[:-1] = (client[1:] == client[:-1]) & (dispatch[1:] == dispatch[:-1])
    return same
