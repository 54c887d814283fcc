"""From events to intervals: when each task was downloading, computing and uploading."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.simulation.kernel.trace import MOST_ROWS, ROW_TYPE, Event, Trace

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
_OF_STAGES = (*STARTS, *ENDS, *STOPS)


@dataclass(frozen=True)
class Spans:
    """Intervals of work, one row each.

    Args:
        client: index in the fleet, shape (n,), int64.
        dispatch: the client's task number, (n,), int64.
        stage: index into `STAGES`, or `ALL_REDUCE`, (n,), int8.
        start, end: virtual s, (n,), float64, start <= end.
        finished: (n,), bool; False if a fault, or the end of the run, cut the stage short, or if it
            goes on in the next window.
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

    def within(self, begin: float, end: float) -> Spans:
        """Returns what of these lies in a window of time."""
        some = (self.start < end) & (self.end > begin)
        columns = {field.name: getattr(self, field.name)[some] for field in fields(self)}
        columns["start"] = np.maximum(columns["start"], begin)
        columns["end"] = np.minimum(columns["end"], end)
        return Spans(**columns)


def spans(trace: Trace, most: int = MOST_ROWS) -> Iterator[Spans]:
    """Yields the stages of all tasks, and the all-reduces, in windows of time of so many events.

    So a long trace need not be in memory. Windows follow each other, and what goes on beyond one
    has a span in the next as well, which begins where that does. Within one, stages are in order of
    (client, dispatch, start), and all-reduces come after them.

    A stage ends with its own end event, or with the fault that stopped the task. One that nothing
    ended lasts until the trace's last event.
    """
    together, last = all_reduces(trace), trace.end
    under_way = np.zeros(0, ROW_TYPE)  # the events with which stages have begun that go on
    begin, left = -math.inf, len(trace)
    for rows in trace.parts(most):
        left -= len(rows)
        own = rows[np.isin(rows["kind"], _OF_STAGES)]
        if left and not len(own):
            continue
        end = float(own["time"][-1]) if left else last
        stages, under_way = _stages(np.concatenate([under_way, own]), end)
        yield stages.beside(together.within(begin, end))
        begin = end


def _stages(rows: NDArray[Any], end: float) -> tuple[Spans, NDArray[Any]]:
    """Returns the stages of these events, and with what begin those that go on beyond `end`."""
    order = np.lexsort((rows["dispatch"], rows["client"]))
    rows = rows[order]
    same = np.zeros(len(rows), dtype=bool)
    for_all = [rows[name][1:] == rows[name][:-1] for name in ("client", "dispatch")]
    same[:-1] = np.logical_and(*for_all)
    at = np.flatnonzero(np.isin(rows["kind"], STARTS))
    closed = same[at]
    following = np.minimum(at + 1, len(rows) - 1)
    begun = rows[at]
    stages = Spans(
        client=begun["client"],
        dispatch=begun["dispatch"],
        stage=np.searchsorted(STARTS, begun["kind"]).astype(np.int8),
        start=begun["time"],
        end=np.where(closed, rows["time"][following], end),
        finished=closed & (rows["kind"][following] == begun["kind"] + 1),  # ends follow starts
    )
    under_way = begun[~closed]
    under_way["time"] = end
    return stages, under_way


def all_reduces(trace: Trace) -> Spans:
    """Returns when each client took part in all-reduces, in the order in which these ended.

    It is not known of other transfers among peers: the trace has when they arrived.
    """
    kinds = (Event.ALL_REDUCE, Event.ALL_REDUCE_FAILED)
    rows = np.concatenate([part[np.isin(part["kind"], kinds)] for part in trace.parts()])
    return Spans(
        client=rows["client"],
        dispatch=rows["dispatch"],
        stage=np.full(len(rows), ALL_REDUCE, np.int8),
        start=rows["time"] - rows["value"],
        end=rows["time"],
        finished=rows["kind"] == Event.ALL_REDUCE,
    )
