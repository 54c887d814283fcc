"""The record of everything that happened in a run, in virtual time.

A trace is a table with one row per event. Rows are appended in the order in which the event queue
processed them, which is a function of configuration and seed; so is the trace's SHA-256. Host time
never enters.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from struct import Struct
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fl.extras import check_importable

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("fl")

_MOST_BYTES = 2**22  # of rows in memory, where others can be on a disk: 100,000 events
MOST_ROWS = 2**17
"""Events that are looked at together."""


class Event(IntEnum):
    """Kinds of events. Values are part of the trace's hash: append, never renumber."""

    DISPATCH = 0  # the server sends a message; bytes = its payload
    DOWNLOAD_START = 1
    DOWNLOAD_END = 2  # bytes = payload received by the client
    COMPUTE_START = 3  # value = planned seconds
    COMPUTE_END = 4
    UPLOAD_START = 5  # bytes = the reply's payload
    UPLOAD_END = 6  # the reply is at the server; bytes = its payload
    DROPOUT = 7  # the client disappeared during the task
    CRASH = 8  # the client's process died during the task and lost its state
    DEPARTURE = 9  # the client's availability ended during the task
    DOWNLOAD_LOST = 10  # bytes were spent, the message did not arrive
    UPLOAD_LOST = 11
    SLOWDOWN = 12  # value = factor on the compute time
    CLIENT_ERROR = 13  # the ClientApp raised, or replied with an error
    EXPIRED = 14  # the message's time to live ran out before a reply arrived
    NODE_UNAVAILABLE = 15  # the server learns that the client is gone
    TIMEOUT = 16  # send_and_receive gave up; client = -1, value = replies still missing
    REJECTED = 17  # a reply that is not a valid message; the server sees an error instead
    APPLIED = 18  # the update entered the server's model; value = its staleness in versions
    DISCARDED = 19  # the strategy did not use the reply; value = its staleness in versions
    CANCELLED = 20  # the server told the client to stop
    FORGED = 21  # an attack replaced the reply
    TRANSFER = 22  # a peer's payload arrived; value = index of the peer
    TRANSFER_LOST = 23  # a peer's payload did not arrive; bytes were spent, value = the peer
    ALL_REDUCE = 24  # the client took part in one that ends now; bytes it sent, value = seconds
    ABSENT = 25  # a node of a network without a server takes no part in a round; value = the round
    MERGED = 26  # a polled client's model was merged; value = versions since its last poll
    NO_STEP = 27  # nothing that came in a round could change the model; value = the round
    NOT_FINITE = 28  # a step to a model that is not finite, which was not taken; value = the round
    ALL_REDUCE_FAILED = 29  # as ALL_REDUCE, of one that another client has left in the middle
    # What a runtime adds (fl.simulation.world.runtime): value = s. The first ten are recorded of
    # each task when it has computed, and are parts of its waiting, download, compute and upload.
    CLIENT_POLL = 30  # the message waited for the client's node to look
    DOWN_CALLS = 31  # round trips before the message's bytes
    TASK_POLL = 32  # the task waited to be started, or for its app to look for objects again
    APP_START = 33
    DECODE = 34  # of the message
    STEPS = 35  # local steps, beside their FLOPs
    THROTTLE = 36  # longer, on a hot device
    ENCODE = 37  # of the reply
    REPLY_POLL = 38  # the reply waits for the client's node to look
    UP_CALLS = 39  # round trips before the reply's bytes
    SERVER_SEND = 40  # the server serialises what it sends; bytes = of that
    SERVER_POLL = 41  # a reply has waited for the server to look
    SERVER_RECEIVE = 42  # the server reads replies; bytes = of these
    AGGREGATE = 43  # and adds them up
    SERVER_EVALUATE = 44
    # Of a hierarchy (fl.simulation.summation): dispatch = the machine.
    AGGREGATOR_START = 45  # a new process; value = s until it can work
    AGGREGATOR_FAILED = 46  # value = updates that are lost with it
    PARTIAL_SUM = 47  # a machine's sum goes to another; bytes = of it, value = s
    RELAY = 48  # what is sent goes to the machines of a hierarchy; bytes = of it, value = s
    # Of power and batteries (fl.simulation.world.power, fl.simulation.kernel.charges).
    POWER = 49  # the task is worked on at a cap; value = the cap, a share of full power
    BATTERY_LOW = 50  # the client is not available any more; value = charge, in [0, 1]
    BATTERY_RESUMED = 51  # nor is it low any more; value = charge


FAULTS = frozenset(
    {
        Event.DROPOUT,
        Event.CRASH,
        Event.DEPARTURE,
        Event.DOWNLOAD_LOST,
        Event.UPLOAD_LOST,
        Event.SLOWDOWN,
        Event.CLIENT_ERROR,
        Event.EXPIRED,
        Event.TIMEOUT,
        Event.REJECTED,
        Event.FORGED,
        Event.TRANSFER_LOST,
        Event.ABSENT,
        Event.NO_STEP,
        Event.NOT_FINITE,
        Event.ALL_REDUCE_FAILED,
        Event.AGGREGATOR_FAILED,
    }
)
"""Events counted as faults in the summary."""

_COUNTED = FAULTS | {Event.NODE_UNAVAILABLE}  # of which a trace keeps count while it grows
_COUNTED_KINDS = np.array(sorted(_COUNTED), np.int8)

_LOSSES = frozenset(
    {Event.DROPOUT, Event.CRASH, Event.DEPARTURE, Event.DOWNLOAD_LOST, Event.UPLOAD_LOST}
)  # after which no reply comes, so that the message expires where nobody tells the server


_ROW = Struct("=dbqqqd")
_pack = _ROW.pack
_pack_terms = Struct("=qdqq10d").pack
ROW_TYPE = np.dtype(
    [
        ("time", "=f8"),
        ("kind", "=i1"),
        ("client", "=i8"),
        ("dispatch", "=i8"),
        ("bytes", "=i8"),
        ("value", "=f8"),
    ]
)
"""An event, as `Trace.record_all` takes it."""

_TERMS = np.dtype(
    [
        ("before", "=i8"),  # bytes of rows
        ("time", "=f8"),
        ("client", "=i8"),
        ("dispatch", "=i8"),
        ("seconds", "=f8", 10),
    ]
)


class Trace:
    """Append-only rows: time, kind, client, dispatch, bytes, value (41 bytes an event).

    Each column is an attribute of its name, an array of shape (events,), made when it is asked for.

    Args:
        elapsed: from the times that are recorded, shape (events,), to those on the clock; None if
            they are the same. It looks at each by itself.
        folder: on whose disk rows are kept but for the latest, in a file without a name that goes
            with the process; None keeps all in memory.

    Attributes:
        num_faults: faults so far, as `faults` counts them.
    """

    lasting = ("num_faults", "_num_lost", "_doubles", "_lost")

    def __init__(
        self,
        elapsed: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.num_faults = 0
        self._elapsed = elapsed
        self._num_lost = 0  # messages to which no reply can come
        self._doubles = 0  # of them, those that have expired
        self._lost: set[int] = set()  # of them, those that may expire: client 2^32 + dispatch
        self._rows = bytearray()  # packed: one call for an event, where columns take six
        self._terms = bytearray()  # of tasks: what becomes rows, and after how many bytes of them
        self._joined: tuple[int, NDArray[Any]] | None = None  # both, and of how many bytes
        self._most: float = math.inf if folder is None else _MOST_BYTES
        self._folder = folder
        self._file: BinaryIO | None = None
        self._on_disk = 0  # rows in the file, with their terms; the others count from there
        self._path: Path | None = None  # of the file, if it has one
        self._crc = 0  # of the file

    def __len__(self) -> int:
        return self._on_disk + len(self._table())

    def record(
        self,
        time: float,
        kind: Event,
        client: int = -1,
        dispatch: int = -1,
        size: int = 0,
        value: float = 0.0,
    ) -> None:
        """Appends one event.

        Args:
            time: virtual time in s.
            kind: what happened.
            client: index of the client in the fleet; -1 for the server.
            dispatch: the client's running task number; (client, dispatch) names a message.
            size: bytes of the payload the event is about, 0 if none.
            value: a number that belongs to the kind, see `Event`.
        """
        self._rows += _pack(time, kind, client, dispatch, size, value)
        if len(self._rows) >= self._most:
            self._to_disk()
        if kind in _COUNTED:
            self._count(kind, client, dispatch)

    def record_all(self, rows: NDArray[Any]) -> None:
        """Appends events, shape (n,), of type `ROW_TYPE`."""
        self._rows += rows.tobytes()
        if len(self._rows) >= self._most:
            self._to_disk()
        for row in rows[np.isin(rows["kind"], _COUNTED_KINDS)]:
            self._count(row["kind"].item(), row["client"].item(), row["dispatch"].item())

    def _count(self, kind: int, client: int, dispatch: int) -> None:
        """Counts a fault, and forgets a lost message that cannot expire any more."""
        message = client << 32 | dispatch
        if kind == Event.NODE_UNAVAILABLE:  # the server has an answer
            self._lost.discard(message)
            return
        self.num_faults += 1
        if kind in _LOSSES:
            self._num_lost += 1
            self._lost.add(message)
        elif kind == Event.EXPIRED and message in self._lost:
            self._lost.remove(message)
            self._doubles += 1
            self.num_faults -= 1

    def record_terms(
        self, time: float, client: int, dispatch: int, seconds: tuple[float, ...]
    ) -> None:
        """Appends an event for each term of a runtime that a task spends time on.

        Args:
            time: virtual time in s.
            client: index of the client in the fleet.
            dispatch: the client's running task number.
            seconds: of the ten terms from `Event.CLIENT_POLL` on; those of 0 are no events.
        """
        self._terms += _pack_terms(len(self._rows), time, client, dispatch, *seconds)

    @property
    def time(self) -> NDArray[np.float64]:
        """Virtual time of each event in s."""
        return self._column("time")

    @property
    def kind(self) -> NDArray[np.int8]:
        """Kind of each event, a value of `Event`."""
        return self._column("kind")

    @property
    def kinds(self) -> list[Event]:
        """Kind of each event, by name."""
        return [Event(kind) for kind in self.kind.tolist()]

    @property
    def client(self) -> NDArray[np.int64]:
        """Index of each event's client; -1 for the server."""
        return self._column("client")

    @property
    def dispatch(self) -> NDArray[np.int64]:
        """Number of each event's task among its client's."""
        return self._column("dispatch")

    @property
    def bytes(self) -> NDArray[np.int64]:
        """Bytes of the payload each event is about."""
        return self._column("bytes")

    @property
    def value(self) -> NDArray[np.float64]:
        """The number that belongs to each event's kind, see `Event`."""
        return self._column("value")

    def _to_disk(self) -> None:
        """Appends the rows in memory to the file; where that cannot be, they and others stay."""
        try:
            if self._file is None:
                self._file = self._new_file()
            rows = self._table().tobytes()
            written = self._file.write(rows)
            if written < len(rows):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            log.warning(
                "the events of this run are kept in memory from here on, 41 bytes each, as %s "
                "takes no more: %s",
                self._folder,
                error.strerror,
            )
            self._most = math.inf
            return
        self._on_disk += len(rows) // _ROW.size
        self._crc = zlib.crc32(rows, self._crc)
        self._joined = None
        self._rows.clear()
        self._terms.clear()

    def _new_file(self) -> BinaryIO:
        if self._path is None:
            return cast(BinaryIO, TemporaryFile(dir=self._folder, buffering=0))
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        file = open(os.open(self._path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115
        return cast(BinaryIO, file)

    def keep_in(self, path: Path) -> None:
        """Has rows kept in a file with a name, from which `go_on` takes them; before the first."""
        self._path, self._most = path, min(self._most, _MOST_BYTES)

    def kept(self) -> tuple[int, int]:
        """Writes all rows to the file that has a name.

        Returns:
            Rows in it, and their CRC-32.

        Raises:
            OSError: it takes no more.
        """
        if self._rows or self._terms or self._file is None:
            self._to_disk()
        if self._rows or self._file is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file.fileno())
        return self._on_disk, self._crc

    def go_on(self, rows: int, crc: int) -> None:
        """Goes on after the first rows of the file that has a name, and no others.

        Args:
            rows: as `kept` returned them.
            crc: likewise.
        """
        assert self._path is not None
        if self._file is not None:
            self._file.close()
        descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
        file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
        self._file = cast(BinaryIO, file)
        self._file.truncate(rows * _ROW.size)
        self._file.seek(0, os.SEEK_END)
        self._on_disk, self._crc, self._joined = rows, crc, None
        self._rows.clear()
        self._terms.clear()

    def parts(self, most: int = MOST_ROWS) -> Iterator[NDArray[Any]]:
        """Returns the events in parts of at most so many, of type `ROW_TYPE`: times on the clock.

        They are copies, as rows are still appended.
        """
        for rows in self._parts(most):
            if self._elapsed is not None:
                rows["time"] = self._elapsed(rows["time"].copy())
            yield rows

    def _parts(self, most: int = MOST_ROWS, name: str | None = None) -> Iterator[NDArray[Any]]:
        """Returns the rows, or a column, in parts; copies."""
        for first in range(0, self._on_disk, most):
            rows = self._read(first, min(most, self._on_disk - first))
            yield rows if name is None else np.array(rows[name])
        if self._rows or self._terms or not self._on_disk:
            table = self._table()
            for start in range(0, max(1, len(table)), most):
                part = table[start : start + most]
                yield np.array(part if name is None else part[name])

    def _read(self, first: int, number: int) -> NDArray[Any]:
        """Returns rows of the file, shape (number,).

        Not by a map of it, whose pages would count as the process's memory.
        """
        assert self._file is not None
        rows = np.empty(number, ROW_TYPE)
        buffer = memoryview(rows.view(np.uint8).data)
        if os.preadv(self._file.fileno(), [buffer], first * _ROW.size) < len(buffer):
            raise OSError(errno.EIO, f"the file of {len(self)} events has become shorter")
        return rows

    def _shown(self, name: str) -> Iterator[NDArray[Any]]:
        """Returns the parts of a column as they are shown: times on the clock."""
        shown = self._elapsed if name == "time" else None
        parts = self._parts(name=name)
        return parts if shown is None else map(shown, parts)

    def _column(self, name: str) -> NDArray[Any]:
        parts = list(self._shown(name))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _table(self) -> NDArray[Any]:
        """Returns the rows in memory, shape (events,); a view of them where there are no terms."""
        rows = np.frombuffer(self._rows, dtype=ROW_TYPE)
        if not self._terms:
            return rows
        size = len(self._rows) + len(self._terms)
        if self._joined is None or self._joined[0] != size:
            terms = np.frombuffer(self._terms, dtype=_TERMS)
            task, term = np.nonzero(terms["seconds"])
            added = np.zeros(len(task), dtype=ROW_TYPE)
            for name in ("time", "client", "dispatch"):
                added[name] = terms[name][task]
            added["kind"] = Event.CLIENT_POLL + term
            added["value"] = terms["seconds"][task, term]
            before = terms["before"][task] // _ROW.size
            self._joined = size, np.insert(rows, before, added)
        return self._joined[1]

    @property
    def end(self) -> float:
        """Time of the last event on the clock, s; 0 without any."""
        if not len(self):
            return 0.0
        rows = self._table()
        last = rows[-1:] if len(rows) else self._read(self._on_disk - 1, 1)
        time = last["time"].copy()
        return float((time if self._elapsed is None else self._elapsed(time))[0])

    @property
    def counts(self) -> Counter[Event]:
        """Number of events of each kind that occurred."""
        counts = sum(np.bincount(kind, minlength=len(Event)) for kind in self._parts(name="kind"))
        return Counter({Event(i): n for i, n in enumerate(np.asarray(counts).tolist()) if n})

    def faults(self) -> dict[str, int]:
        """Returns the number of events of each fault kind that occurred, by lower-case name.

        A message that expires because its client, or what was sent, was lost is that one fault.
        """
        counts = self.counts
        counts[Event.EXPIRED] -= self._doubles
        return {kind.name.lower(): counts[kind] for kind in sorted(FAULTS) if counts[kind] > 0}

    def came_too_late(self) -> bool:
        """Returns whether a reply was waited for in vain that was not lost."""
        missing = self._values(Event.TIMEOUT)[1]
        return self.counts[Event.EXPIRED] > self._doubles or missing > self._num_lost

    def staleness(self) -> dict[str, float] | None:
        """Returns count, mean and maximum of the applied updates' staleness; None without any."""
        return self._versions(Event.APPLIED)

    def poll_gap(self) -> dict[str, float] | None:
        """Returns count, mean and maximum of the versions between polls; None without any.

        That is no staleness: a client that is polled seldom has had more time to work, from the
        model that the last poll left it with, and is not late.
        """
        return self._versions(Event.MERGED)

    def _versions(self, kind: Event) -> dict[str, float] | None:
        number, total, largest = self._values(kind)
        return {"updates": number, "mean": total / number, "max": largest} if number else None

    def _values(self, kind: Event) -> tuple[int, float, float]:
        """Returns how many events are of a kind, and the sum and the largest of their values."""
        number, total, largest = 0, 0.0, -math.inf
        for rows in self._parts():
            values = rows["value"][rows["kind"] == kind]
            if len(values):
                number += len(values)
                total += float(values.sum())
                largest = max(largest, float(values.max()))
        return number, total, largest

    def sha256(self) -> str:
        """Returns the hash of all columns: equal runs, equal hashes."""
        digest = hashlib.sha256()
        for name in ROW_TYPE.names or ():
            for part in self._shown(name):
                digest.update(part.tobytes())
        return digest.hexdigest()

    def table(self) -> pa.Table:
        """Returns the trace as an Arrow table; `kind` is dictionary-encoded by name.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        check_importable("a trace as a table", "pyarrow")
        import pyarrow as pa

        return pa.concat_tables(self.tables())

    def tables(self) -> Iterator[pa.Table]:
        """Returns the trace as tables with some of the rows each, one after the other.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        check_importable("a trace as a table", "pyarrow")
        import pyarrow as pa

        names = [kind.name.lower().encode() for kind in Event]
        ends = np.cumsum([0, *map(len, names)], dtype=np.int32)
        text = pa.py_buffer(b"".join(names))
        kinds = pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), text)
        columns = (self._shown(name) for name in ROW_TYPE.names or ())
        for time, kind, client, dispatch, size, value in zip(*columns, strict=True):
            yield pa.table(
                {
                    "time_s": _arrow(time),
                    "kind": pa.DictionaryArray.from_arrays(_arrow(kind), kinds),
                    "client": _arrow(client),
                    "dispatch": _arrow(dispatch),
                    "bytes": _arrow(size),
                    "value": _arrow(value),
                }
            )


def _arrow(values: NDArray[Any]) -> pa.Array:
    """Returns numbers as an Arrow array.

    `pyarrow.array` imports pandas, a third of a second, to see whether it is given something of it.
    """
    import pyarrow as pa

    memory = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, memory])
