"""A trace as a timeline for https://ui.perfetto.dev or chrome://tracing.

Format: "Trace Event Format" (JSON object form), timestamps in microseconds of virtual time, printed
to the nanosecond. Two processes: the server, and the clients with one track each.

- Stages are complete events ("X"): a begin and its duration in one object, so a fault cannot leave
  a begin without an end. A stage that a fault, or the end of the run, cut short has
  `finished: false`.
- Tasks of one client that overlap in time would nest wrongly on one track. Each further task at a
  time gets a further track of the client, `client 7 (2)`.
- Faults are instants on the track of their task; dispatches, timeouts and the server's notices of
  lost clients are instants of the server.
- Counters: tasks in flight, tasks by stage, and each metric at its evaluations.

Size and cost: about 140 bytes of file, 2 microseconds of host time and 150 bytes of memory an event
of the trace; the text itself is written in chunks. Two million events make a file of 280 MB in 4 s.
For much longer runs turn the timeline off: trace.parquet has everything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.reports.atomic import replacing
from fl.reports.history import COLUMNS, Row
from fl.reports.spans import STAGES, Spans, dispatches, spans
from fl.simulation.kernel.trace import FAULTS, Event, Trace

_SERVER_PID, _CLIENTS_PID = 1, 2
_SERVER_TID = 1
_FIRST_CLIENT_TID = 2
_CHUNK = 100_000
_SERVER_KINDS = (Event.DISPATCH, Event.TIMEOUT, Event.NODE_UNAVAILABLE)
_CLIENT_KINDS = tuple(sorted(FAULTS - set(_SERVER_KINDS)))

_COUNTERS = ("tasks in flight", "tasks by stage")

_Source = tuple[NDArray[np.int64], Callable[[NDArray[np.int64]], list[str]]]


def write_timeline(trace: Trace, path: Path, history: Sequence[Row] = ()) -> None:
    """Writes the timeline of a trace.

    Args:
        trace: events of the run; it may end at any point.
        path: the JSON file, replaced as a whole.
        history: evaluations whose metrics become counters.
    """
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="ascii", newline="\n") as file,
    ):
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        separator = ""
        for lines in _chunks(trace, history):
            file.write(separator)
            file.write(",\n".join(lines))
            separator = ",\n"
        file.write("\n]}\n")


def _chunks(trace: Trace, history: Sequence[Row]) -> Iterator[list[str]]:
    stages = spans(trace)
    lane = _lanes(stages)
    tids = _Tids(stages, lane)
    yield [*_server_names(), *tids.names()]
    sources = [
        _stage_events(stages, tids.of_span),
        _instants(trace, stages, tids),
        _in_flight(trace),
        _stage_counts(stages),
        _metric_counters(history),
    ]
    times = np.concatenate([ts for ts, _ in sources])
    source = np.concatenate([np.full(len(ts), i) for i, (ts, _) in enumerate(sources)])
    index = np.concatenate([np.arange(len(ts)) for ts, _ in sources])
    order = np.argsort(times, kind="stable")
    for at in range(0, len(order), _CHUNK):
        part = order[at : at + _CHUNK]
        lines = np.empty(len(part), dtype=object)
        for i, (_, render) in enumerate(sources):
            mine = source[part] == i
            if mine.any():
                lines[mine] = render(index[part][mine])
        yield lines.tolist()


def _lanes(stages: Spans) -> NDArray[np.int64]:
    """Returns each span's lane: tasks of one client that overlap are in different lanes."""
    n = len(stages)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    # Rows are in order of (client, dispatch, start), so a task is a run of equal pairs.
    new = np.ones(n, dtype=bool)
    new[1:] = (np.diff(stages.client) != 0) | (np.diff(stages.dispatch) != 0)
    first = np.flatnonzero(new)
    task_end = np.maximum.reduceat(_ns(stages.end), first)
    task_start = _ns(stages.start)[first]
    task_client = stages.client[first]
    lane = np.zeros(len(first), dtype=np.int64)
    free_at: list[int] = []  # per lane of the current client: when its last task ends
    current = -1
    order = np.lexsort((np.arange(len(first)), task_start, task_client)).tolist()
    for task, client, start, end in zip(
        order,
        task_client[order].tolist(),
        task_start[order].tolist(),
        task_end[order].tolist(),
        strict=True,
    ):
        if client != current:
            current, free_at = client, []
        chosen = next((k for k, free in enumerate(free_at) if free <= start), len(free_at))
        if chosen == len(free_at):
            free_at.append(end)
        else:
            free_at[chosen] = end
        lane[task] = chosen
    of_span: NDArray[np.int64] = lane[np.cumsum(new) - 1]
    return of_span


class _Tids:
    """Track numbers: client c's first track is c + 2, further ones come after all clients."""

    def __init__(self, stages: Spans, lane: NDArray[np.int64]) -> None:
        pairs = np.stack([stages.client, lane], axis=1)
        further, position = np.unique(pairs[lane > 0], axis=0, return_inverse=True)
        base = _FIRST_CLIENT_TID + (int(stages.client.max()) + 1 if len(stages) else 0)
        self.of_span = stages.client + _FIRST_CLIENT_TID
        self.of_span[lane > 0] = base + position.reshape(-1)
        self._further: list[tuple[int, int]] = [(int(c), int(k)) for c, k in further]
        self._base = base
        self._clients: list[int] = np.unique(stages.client).tolist()

    def names(self) -> Iterator[str]:
        tracks = [(c, 0, c + _FIRST_CLIENT_TID) for c in self._clients]
        tracks += [(c, k, self._base + i) for i, (c, k) in enumerate(self._further)]
        for rank, (client, lane, tid) in enumerate(sorted(tracks)):
            name = f"client {client}" + (f" ({lane + 1})" if lane else "")
            yield _meta("thread_name", _CLIENTS_PID, tid, f'"name":"{name}"')
            yield _meta("thread_sort_index", _CLIENTS_PID, tid, f'"sort_index":{rank}')


def _server_names() -> list[str]:
    return [
        _meta("process_name", _SERVER_PID, _SERVER_TID, '"name":"server"'),
        _meta("process_sort_index", _SERVER_PID, _SERVER_TID, '"sort_index":0'),
        _meta("thread_name", _SERVER_PID, _SERVER_TID, '"name":"server"'),
        _meta("process_name", _CLIENTS_PID, _FIRST_CLIENT_TID, '"name":"clients"'),
        _meta("process_sort_index", _CLIENTS_PID, _FIRST_CLIENT_TID, '"sort_index":1'),
    ]


def _meta(name: str, pid: int, tid: int, args: str) -> str:
    return f'{{"ph":"M","name":"{name}","pid":{pid},"tid":{tid},"ts":0,"args":{{{args}}}}}'


def _stage_events(stages: Spans, tid: NDArray[np.int64]) -> _Source:
    start = _ns(stages.start)
    # The duration is the difference of the rounded times: neighbours touch, and never overlap.
    length = _ns(stages.end) - start

    def render(rows: NDArray[np.int64]) -> list[str]:
        columns = (start, length, tid, stages.stage, stages.dispatch, stages.finished)
        return [
            f'{{"ph":"X","name":"{STAGES[stage]}","pid":{_CLIENTS_PID},"tid":{track},'
            f'"ts":{_us(ts)},"dur":{_us(dur)},'
            f'"args":{{"task":{task},"finished":{"true" if finished else "false"}}}}}'
            for ts, dur, track, stage, task, finished in zip(
                *(c[rows].tolist() for c in columns), strict=True
            )
        ]

    return start, render


def _instants(trace: Trace, stages: Spans, tids: _Tids) -> _Source:
    kind = trace.kind
    rows = np.flatnonzero(np.isin(kind, (*_SERVER_KINDS, *_CLIENT_KINDS)))
    kind = kind[rows]
    ts = _ns(trace.time[rows])
    client = trace.client[rows]
    dispatch = trace.dispatch[rows]
    size = trace.bytes[rows]
    value = trace.value[rows]
    on_server = np.isin(kind, _SERVER_KINDS) | (client < 0)
    # A fault belongs to the track of its task, or to the client's first if the task never started.
    tid = np.where(on_server, _SERVER_TID, client + _FIRST_CLIENT_TID)
    further = np.flatnonzero(tids.of_span != stages.client + _FIRST_CLIENT_TID).tolist()
    track = {
        (int(stages.client[i]), int(stages.dispatch[i])): int(tids.of_span[i]) for i in further
    }
    if track:
        for i in np.flatnonzero(~on_server).tolist():
            tid[i] = track.get((int(client[i]), int(dispatch[i])), tid[i])

    def render(at: NDArray[np.int64]) -> list[str]:
        columns = (ts, kind, tid, on_server, client, dispatch, size, value)
        return [
            f'{{"ph":"i","s":"t","name":"{_NAMES[k]}","pid":'
            f'{_SERVER_PID if server else _CLIENTS_PID},"tid":{track},"ts":{_us(t)},'
            f'"args":{{"client":{c},"task":{d},"bytes":{b},"value":{_json_number(v)}}}}}'
            for t, k, track, server, c, d, b, v in zip(
                *(c[at].tolist() for c in columns), strict=True
            )
        ]

    return ts, render


def _in_flight(trace: Trace) -> _Source:
    sent = dispatches(trace)
    back = sent.end[np.isfinite(sent.end)]
    ts, count = _running_count(_ns(sent.start), _ns(back))

    def render(rows: NDArray[np.int64]) -> list[str]:
        return [
            _counter("tasks in flight", t, f'"tasks":{n}')
            for t, n in zip(ts[rows].tolist(), count[rows].tolist(), strict=True)
        ]

    return ts, render


def _stage_counts(stages: Spans) -> _Source:
    by_stage = []
    for stage in range(len(STAGES)):
        mine = stages.stage == stage
        by_stage.append(_running_count(_ns(stages.start[mine]), _ns(stages.end[mine])))
    ts = np.unique(np.concatenate([t for t, _ in by_stage]))
    # The count at time t is that of the last change not after t; before the first it is 0.
    counts = [np.append(0, c)[np.searchsorted(t, ts, side="right")] for t, c in by_stage]

    def render(rows: NDArray[np.int64]) -> list[str]:
        return [
            _counter("tasks by stage", t, f'"download":{d},"compute":{c},"upload":{u}')
            for t, d, c, u in zip(
                ts[rows].tolist(), *(count[rows].tolist() for count in counts), strict=True
            )
        ]

    return ts, render


def _metric_counters(history: Sequence[Row]) -> _Source:
    points = [
        (round(row["time_s"] * 1e9), name if name not in _COUNTERS else f"metric {name}", value)
        for row in history
        for name, value in row.items()
        if name not in COLUMNS and math.isfinite(value)
    ]
    ts = np.array([t for t, _, _ in points], dtype=np.int64)

    def render(rows: NDArray[np.int64]) -> list[str]:
        return [
            _counter(name, t, f'"value":{_json_number(value)}')
            for t, name, value in (points[i] for i in rows.tolist())
        ]

    return ts, render


def _running_count(
    starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the times at which the number of open intervals may change, and it from then on."""
    ts = np.unique(np.concatenate([starts, ends]))
    opened = np.searchsorted(np.sort(starts), ts, side="right")
    closed = np.searchsorted(np.sort(ends), ts, side="right")
    return ts, (opened - closed).astype(np.int64)


def _counter(name: str, ns: int, args: str) -> str:
    return (
        f'{{"ph":"C","name":{json.dumps(name)},"pid":{_SERVER_PID},"tid":{_SERVER_TID},'
        f'"ts":{_us(ns)},"args":{{{args}}}}}'
    )


_NAMES = {int(kind): kind.name.lower() for kind in Event}


def _ns(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(seconds * 1e9).astype(np.int64)


def _us(ns: int) -> str:
    whole, rest = divmod(ns, 1000)
    return f"{whole}.{rest:03d}"


def _json_number(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'"{value}"'
