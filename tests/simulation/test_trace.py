"""What a trace counts as faults."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl.simulation.kernel.trace import ROW_TYPE, Event, Trace


def traced(*events):
    trace = Trace()
    for time, (kind, client, dispatch, value) in enumerate(events):
        trace.record(float(time), kind, client, dispatch, value=value)
    return trace


def test_a_message_that_expires_because_its_reply_was_lost_is_one_fault():
    lost = traced(
        (Event.DROPOUT, 0, 0, 0.0),
        (Event.UPLOAD_LOST, 1, 0, 0.0),
        (Event.EXPIRED, 0, 0, 0.0),
        (Event.EXPIRED, 1, 0, 0.0),
    )
    assert lost.faults() == {"dropout": 1, "upload_lost": 1}
    assert lost.num_faults == 2
    assert not lost.came_too_late()
    lost.record(9.0, Event.EXPIRED, 1, 1)  # the client's next message, of which nothing was lost
    assert lost.faults() == {"dropout": 1, "upload_lost": 1, "expired": 1}
    assert lost.num_faults == 3
    assert lost.came_too_late()


def test_a_round_that_waits_for_more_than_was_lost_has_somebody_too_late():
    events = [(Event.DOWNLOAD_LOST, 3, 0, 0.0), (Event.TIMEOUT, -1, -1, 1.0)]
    assert not traced(*events).came_too_late()
    assert traced(*events, (Event.TIMEOUT, -1, -1, 1.0)).came_too_late()
    assert not Trace().came_too_late()


@pytest.mark.parametrize("most", [10**9, 100])
def test_events_that_are_recorded_at_once_are_those_recorded_one_by_one(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl.simulation.kernel.trace._MOST_BYTES", most)
    rng = np.random.default_rng(0)
    rows = np.zeros(300, ROW_TYPE)
    rows["time"], rows["kind"] = np.arange(300) / 8, rng.integers(0, len(Event), 300)
    rows["client"], rows["dispatch"] = rng.integers(0, 4, 300), rng.integers(0, 3, 300)
    rows["bytes"], rows["value"] = rng.integers(0, 99, 300), rng.random(300)
    one_by_one, at_once = Trace(), Trace(folder=tmp_path)
    for row in rows.tolist():
        one_by_one.record(row[0], Event(row[1]), *row[2:])
    at_once.record_all(rows[:200])
    at_once.record_all(rows[200:200])
    at_once.record_all(rows[200:])
    assert at_once.sha256() == one_by_one.sha256()
    assert at_once.num_faults == one_by_one.num_faults > 0
    assert at_once.faults() == one_by_one.faults()


# ---- rows on a disk ------------------------------------------------------------------------------


def recorded(trace: Trace, count: int, begin: int = 0, terms: tuple[float, ...] = ()) -> Trace:
    for i in range(begin, count):
        trace.record(i / 8, Event(i % 5), i % 7, i // 7, i, -i / 3)
        if terms and i % 3 == 0:
            trace.record_terms(i / 8, i % 7, i // 7, terms)
    return trace


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets few rows stay in memory, and few be looked at together."""
    monkeypatch.setattr("fl.simulation.kernel.trace._MOST_BYTES", 10 * 41)
    monkeypatch.setattr("fl.simulation.kernel.trace.MOST_ROWS", 7)


@pytest.mark.parametrize("count", [0, 9, 10, 34, 40])
@pytest.mark.usefixtures("tiny")
def test_a_trace_on_a_disk_is_that_in_memory(count: int, tmp_path: Path) -> None:
    def later(times: NDArray[np.float64]) -> NDArray[np.float64]:
        return times + 3

    terms = (0.0, 1.5, 0.0, 2.5, *[0.0] * 6)  # two events each
    for elapsed, added in ((None, ()), (later, ()), (None, terms)):
        memory, disk = Trace(elapsed), Trace(elapsed, tmp_path)
        for begin, upto in ((0, count // 2), (count // 2, count)):  # it was looked at in between
            recorded(memory, upto, begin, added)
            recorded(disk, upto, begin, added)
            assert len(disk._rows) < 10 * 41
            assert len(disk) == len(memory) == upto + len(added) // 5 * ((upto + 2) // 3)
            assert disk.sha256() == memory.sha256()
            for name in ("time", "kind", "client", "dispatch", "bytes", "value"):
                np.testing.assert_array_equal(getattr(disk, name), getattr(memory, name))
            assert disk.table().equals(memory.table())
            assert disk.counts == Counter(memory.kinds)
            assert disk.end == (memory.time[-1] if len(memory) else 0.0)
            assert disk.faults() == memory.faults()
    assert list(tmp_path.iterdir()) == []  # no name that a killed process would leave


@pytest.mark.usefixtures("tiny")
def test_a_trace_whose_disk_is_full_stays_in_memory_and_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trace = recorded(Trace(folder=tmp_path), 15)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, rows: bytes) -> int:
            self.file.write(rows[:100])  # not a whole number of rows
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    assert trace._file is not None
    trace._file = Full(trace._file)  # type: ignore[assignment]
    recorded(trace, 40, 15)
    assert trace.sha256() == recorded(Trace(), 40).sha256()
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_lost_message_is_remembered_only_while_it_may_expire():
    trace = traced(
        (Event.DROPOUT, 0, 0, 0.0),
        (Event.NODE_UNAVAILABLE, 0, 0, 0.0),  # the server has an answer
        (Event.UPLOAD_LOST, 1, 0, 0.0),
        (Event.EXPIRED, 1, 0, 0.0),  # of that loss
        (Event.UPLOAD_LOST, 1, 1, 0.0),
    )
    assert len(trace._lost) == 1
    trace.record(9.0, Event.EXPIRED, 0, 0)  # not of a loss any more: one that came later
    assert trace.num_faults == sum(trace.faults().values()) == 4


def test_events_of_a_file_with_a_name_go_on_where_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "events"
    first, whole = Trace(), recorded(Trace(), 50)
    first.keep_in(path)
    kept = recorded(first, 20).kept()
    recorded(first, 35, 20)  # lost with the process, as far as they are in the file
    first.kept()
    again = Trace()
    again.keep_in(path)
    recorded(again, 3)  # of a beginning that is repeated
    again.go_on(*kept)
    assert kept[0] == len(again) == 20
    recorded(again, 50, 20)
    assert again.sha256() == whole.sha256()
    assert again.kept() == (50, zlib.crc32(path.read_bytes()))
