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

A slice is written when it ends, so the file is not in the order of what slices begin with; readers
sort. The names of the tracks come last.

It is written event by event, and compressed: memory has the tasks that are under way and the
clients, however long the run was. Of runs of more than `MOST_EVENTS` events it has every second,
third, ... client, by number, so that a viewer can open it; counters are of all. `views=false`
leaves it out, and trace.parquet has everything.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.reports.atomic import replacing
from fl.reports.history import COLUMNS, Row
from fl.reports.spans import ENDS, LAST, STAGES, STARTS, STOPS, WAITS
from fl.simulation.kernel.trace import FAULTS, Event, Trace

_SERVER_PID, _CLIENTS_PID = 1, 2
_SERVER_TID = 1
_FIRST_CLIENT_TID = 2
_CHUNK = 50_000  # events
_COMPRESSION = 1  # a third of the time of the usual level, for a file half as large again
MOST_EVENTS = 1_000_000
"""Of the clients in a timeline, together; about 140 bytes each before they are compressed."""
# Whole numbers, as the trace has them: a member of an enumeration takes longer to be found.
_DISPATCH, _COMPUTE_END, _EXPIRED = map(int, (Event.DISPATCH, Event.COMPUTE_END, Event.EXPIRED))
_SERVER_KINDS = frozenset(map(int, (Event.DISPATCH, Event.TIMEOUT, Event.NODE_UNAVAILABLE)))
_SHOWN = frozenset(map(int, FAULTS)) | _SERVER_KINDS
_STAGE_OF = {int(kind): stage for stage, kind in enumerate(STARTS)}
_END_OF = tuple(map(int, ENDS))
_ENDING = frozenset(map(int, (*ENDS, *STOPS)))
_LAST = frozenset(map(int, LAST))
_WAITING = frozenset(map(int, WAITS))

_COUNTERS = ("tasks in flight", "tasks by stage")


def write_timeline(trace: Trace, path: Path, history: Sequence[Row] = ()) -> None:
    """Writes the timeline of a trace.

    Args:
        trace: events of the run; it may end at any point.
        path: the JSON file, compressed by gzip, replaced as a whole.
        history: evaluations whose metrics become counters.
    """
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as raw,
        # The same run is the same bytes: no name and no date.
        gzip.GzipFile("", "wb", _COMPRESSION, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="ascii", newline="\n") as file,
    ):
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        file.write(",\n".join(_server_names()))
        timeline = _Timeline(trace, history)
        for rows in trace.parts(_CHUNK):
            file.writelines(f",\n{line}" for line in timeline.lines(rows))
        file.writelines(f",\n{line}" for line in timeline.end())
        file.write("\n]}\n")


class _Task:
    """A task that is under way.

    Attributes:
        sent: whether its message was.
        last: kind of its latest event.
        stage: index into `STAGES` of what its client is at; -1 between stages.
        start: when that began, ns.
        lane: its track among those of its client; -1 before its first stage.
        tid: of that track.
    """

    __slots__ = ("lane", "last", "sent", "stage", "start", "tid")

    def __init__(self) -> None:
        self.sent = False
        self.last = -1
        self.stage = -1
        self.start = 0
        self.lane = -1
        self.tid = -1


class _Timeline:
    """Makes lines of events, one after the other.

    Args:
        trace: of the run.
        history: evaluations.
    """

    def __init__(self, trace: Trace, history: Sequence[Row]) -> None:
        clients = [int(rows["client"].max()) for rows in trace.parts() if len(rows)]
        self._further = _FIRST_CLIENT_TID + 1 + max(clients, default=-1)  # next tid of such tracks
        self._tasks: dict[tuple[int, int], _Task] = {}
        self._computed: dict[tuple[int, int], None] = {}  # at this instant, perhaps no upload comes
        self._busy: dict[int, list[bool]] = {}  # for each client's tracks, whether a task has it
        self._tids: dict[tuple[int, int], int] = {}  # of a client's further tracks
        self._now = 0  # ns
        self._in_flight = 0
        self._at = [0] * len(STAGES)  # tasks in each stage
        self._changed = [False, False]  # the counters
        self._every = max(1, -(-len(trace) // MOST_EVENTS))  # client that is shown
        self._metrics = _metric_counters(history)
        self._next = next(self._metrics, None)

    def lines(self, rows: NDArray[np.void]) -> Iterator[str]:
        """Returns the lines of events, shape (n,), of type `ROW_TYPE`."""
        times = _ns(rows["time"]).tolist()
        names = ("kind", "client", "dispatch", "bytes", "value")
        columns = (rows[name].tolist() for name in names)
        for time, kind, client, dispatch, size, value in zip(times, *columns, strict=True):
            if time != self._now:
                yield from self._instant()
                self._now = time
                while self._next is not None and self._next[0] <= time:
                    yield self._next[1]
                    self._next = next(self._metrics, None)
            yield from self._event(kind, client, dispatch, size, value)

    def end(self) -> Iterator[str]:
        """Returns the last lines: stages that nothing has ended, and names of the tracks."""
        yield from self._instant()
        for (client, dispatch), task in self._tasks.items():
            if task.stage >= 0:
                yield from self._slice(client, dispatch, task, finished=False)
        yield from self._instant()
        while self._next is not None:
            yield self._next[1]
            self._next = next(self._metrics, None)
        tracks = [
            (client, lane, self._tids.get((client, lane), client + _FIRST_CLIENT_TID))
            for client, lanes in self._busy.items()
            if self._shows(client)
            for lane in range(len(lanes))
        ]
        for rank, (client, lane, tid) in enumerate(sorted(tracks)):
            name = f"client {client}" + (f" ({lane + 1})" if lane else "")
            yield _meta("thread_name", _CLIENTS_PID, tid, f'"name":"{name}"')
            yield _meta("thread_sort_index", _CLIENTS_PID, tid, f'"sort_index":{rank}')

    def _shows(self, client: int) -> bool:
        """Returns whether a client has tracks; -1, which is none, has."""
        return client < 0 or client % self._every == 0

    def _event(
        self, kind: int, client: int, dispatch: int, size: int, value: float
    ) -> Iterator[str]:
        key = client, dispatch
        task = self._tasks.get(key)
        tid = client + _FIRST_CLIENT_TID if task is None or task.tid < 0 else task.tid
        if kind == _DISPATCH:
            task = self._tasks[key] = _Task()
            task.sent = True
            self._in_flight += 1
            self._changed[0] = True
        elif kind in _STAGE_OF:
            if task is None:
                task = self._tasks[key] = _Task()
            if task.stage >= 0:
                yield from self._slice(client, dispatch, task, finished=False)
            self._begin(client, task, _STAGE_OF[kind])
            self._computed.pop(key, None)
        elif task is not None and kind in _ENDING:
            if task.stage >= 0:
                finished = kind == _END_OF[task.stage]
                yield from self._slice(client, dispatch, task, finished=finished)
            if kind in _LAST:
                self._over(key, task)
            elif kind == _COMPUTE_END:
                self._computed[key] = None
        elif task is not None and kind == _EXPIRED and task.last in _WAITING:
            self._over(key, task)
        if task is not None:
            task.last = kind
        if kind in _SHOWN and self._shows(client):
            on_server = kind in _SERVER_KINDS or client < 0
            pid, track = (_SERVER_PID, _SERVER_TID) if on_server else (_CLIENTS_PID, tid)
            yield (
                f'{{"ph":"i","s":"t","name":"{_NAMES[kind]}","pid":{pid},"tid":{track},'
                f'"ts":{_us(self._now)},"args":{{"client":{client},"task":{dispatch},'
                f'"bytes":{size},"value":{_json_number(value)}}}}}'
            )

    def _begin(self, client: int, task: _Task, stage: int) -> None:
        """Begins a stage, and before the first one takes a track that no other task is on."""
        if task.lane < 0:
            busy = self._busy.setdefault(client, [])
            task.lane = next((lane for lane, taken in enumerate(busy) if not taken), len(busy))
            if task.lane == len(busy):
                busy.append(True)
                if task.lane:
                    self._tids[client, task.lane] = self._further
                    self._further += 1
            busy[task.lane] = True
            task.tid = self._tids.get((client, task.lane), client + _FIRST_CLIENT_TID)
        task.stage, task.start = stage, self._now
        self._at[stage] += 1
        self._changed[1] = True

    def _slice(self, client: int, dispatch: int, task: _Task, *, finished: bool) -> Iterator[str]:
        """Ends a stage; returns its line, if the client has a track."""
        stage, task.stage = task.stage, -1
        self._at[stage] -= 1
        self._changed[1] = True
        if not self._shows(client):
            return
        # The duration is the difference of the rounded times: neighbours touch, and never overlap.
        yield (
            f'{{"ph":"X","name":"{STAGES[stage]}","pid":{_CLIENTS_PID},"tid":{task.tid},'
            f'"ts":{_us(task.start)},"dur":{_us(self._now - task.start)},'
            f'"args":{{"task":{dispatch},"finished":{"true" if finished else "false"}}}}}'
        )

    def _over(self, key: tuple[int, int], task: _Task) -> None:
        """Forgets a task, whose track is free for those that begin from now on."""
        del self._tasks[key]
        self._computed.pop(key, None)
        if task.lane >= 0:
            self._busy[key[0]][task.lane] = False
        if task.sent:
            self._in_flight -= 1
            self._changed[0] = True

    def _instant(self) -> Iterator[str]:
        """Returns the counters, if they have changed at the instant that is over."""
        for key in list(self._computed):  # for its peers: nothing is uploaded
            self._over(key, self._tasks[key])
        if self._changed[0]:
            yield _counter(_COUNTERS[0], self._now, f'"tasks":{self._in_flight}')
        if self._changed[1]:
            counts = zip(STAGES, self._at, strict=True)
            values = ",".join(f'"{stage}":{tasks}' for stage, tasks in counts)
            yield _counter(_COUNTERS[1], self._now, values)
        self._changed = [False, False]


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


def _metric_counters(history: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """Returns time in ns and line of each metric of each evaluation."""
    for row in history:
        ns = round(row["time_s"] * 1e9)
        for name, value in row.items():
            if name not in COLUMNS and math.isfinite(value):
                shown = name if name not in _COUNTERS else f"metric {name}"
                yield ns, _counter(shown, ns, f'"value":{_json_number(value)}')


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
