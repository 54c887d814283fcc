import gzip
import json
import math
from collections import defaultdict

import numpy as np
import pytest
from many_cases import for_each

from fl.reports import timeline
from fl.reports.timeline import write_timeline
from fl.simulation.kernel.trace import FAULTS, Event, Trace


def written(tmp_path, trace, history=()):
    path = tmp_path / "timeline.json.gz"
    write_timeline(trace, path, history)
    return json.loads(gzip.decompress(path.read_bytes()))


def of(document, phase, **wanted):
    events = [e for e in document["traceEvents"] if e["ph"] == phase]
    return [e for e in events if all(e[key] == value for key, value in wanted.items())]


def check_format(document):
    """The rules of the Trace Event Format for the phases that are used."""
    assert isinstance(document["traceEvents"], list)
    required = {
        "M": {"name", "ph", "pid", "tid", "args"},
        "X": {"name", "ph", "pid", "tid", "ts", "dur", "args"},
        "i": {"name", "ph", "pid", "tid", "ts", "s", "args"},
        "C": {"name", "ph", "pid", "ts", "args"},
    }
    last = -math.inf
    named = {(e["pid"], e["tid"]) for e in of(document, "M", name="thread_name")}
    busy_until = defaultdict(lambda: -math.inf)
    for event in document["traceEvents"]:
        assert required[event["ph"]] <= event.keys()
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            continue
        now = round(event["ts"] + event.get("dur", 0), 3)
        assert now >= last, "events are in order of time, slices by their ends"
        last = now
        assert event["ts"] >= 0
        if event["ph"] == "X":
            track = (event["pid"], event["tid"])
            assert track in named
            assert event["dur"] >= 0
            assert event["ts"] >= busy_until[track], "slices of a track do not overlap"
            busy_until[track] = round(event["ts"] + event["dur"], 3)
        if event["ph"] == "i":
            assert event["s"] in {"g", "p", "t"}
        if event["ph"] == "C":
            assert all(isinstance(v, int | float) for v in event["args"].values())


def test_the_file_keeps_the_rules_of_the_format(tmp_path, trace, row):
    check_format(written(tmp_path, trace, [row(1, 4.0, accuracy=0.5)]))


def test_every_stage_is_one_slice_in_microseconds(tmp_path, trace):
    document = written(tmp_path, trace)
    slices = [
        (e["tid"], e["args"]["task"], e["name"], e["ts"], e["dur"], e["args"]["finished"])
        for e in of(document, "X")
    ]
    # Tracks: client 0 is 2, client 1 is 3, and 4 takes client 1's task that overlaps another.
    assert sorted(slices) == [
        (2, 0, "compute", 1e6, 2e6, True),
        (2, 0, "download", 0.0, 1e6, True),
        (2, 0, "upload", 3e6, 1e6, True),
        (2, 1, "download", 4e6, 1e6, False),
        (3, 0, "compute", 2e6, 3e6, False),
        (3, 0, "download", 0.0, 2e6, True),
        (3, 1, "compute", 7e6, 2e6, True),
        (3, 1, "download", 6e6, 1e6, True),
        (3, 1, "upload", 9e6, 3e6, True),
        (4, 2, "compute", 9e6, 1e6, True),
        (4, 2, "download", 6.5e6, 1.5e6, True),
        (4, 2, "upload", 10e6, 2e6, False),
    ]


def test_tracks_are_named_after_clients_and_the_server(tmp_path, trace):
    document = written(tmp_path, trace)
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in of(document, "M", name="thread_name")}
    assert names == {
        (1, 1): "server",
        (2, 2): "client 0",
        (2, 3): "client 1",
        (2, 4): "client 1 (2)",
    }
    order = {e["tid"]: e["args"]["sort_index"] for e in of(document, "M", name="thread_sort_index")}
    assert order == {2: 0, 3: 1, 4: 2}
    processes = {e["pid"]: e["args"]["name"] for e in of(document, "M", name="process_name")}
    assert processes == {1: "server", 2: "clients"}


def test_faults_are_instants_on_the_track_of_their_task(tmp_path, trace):
    instants = [(e["name"], e["tid"], e["ts"]) for e in of(written(tmp_path, trace), "i", pid=2)]
    assert instants == [
        ("dropout", 3, 5e6),
        ("download_lost", 2, 5e6),
        ("slowdown", 3, 7e6),
        ("expired", 3, 11e6),
    ]


def test_a_fault_of_an_overlapping_task_is_on_its_own_track(tmp_path, trace):
    trace.record(12.0, Event.DEPARTURE, 1, 2)
    (fault,) = of(written(tmp_path, trace), "i", name="departure")
    assert fault["tid"] == 4


def test_the_server_shows_dispatches_timeouts_and_notices(tmp_path, trace):
    document = written(tmp_path, trace)
    dispatches = of(document, "i", pid=1, name="dispatch")
    assert [(e["ts"], e["args"]["client"], e["args"]["task"]) for e in dispatches] == [
        (0.0, 0, 0),
        (0.0, 1, 0),
        (4e6, 0, 1),
        (6e6, 1, 1),
        (6.5e6, 1, 2),
    ]
    (timeout,) = of(document, "i", pid=1, name="timeout")
    assert (timeout["ts"], timeout["args"]["value"]) == (11.5e6, 2.0)
    (notice,) = of(document, "i", pid=1, name="node_unavailable")
    assert (notice["ts"], notice["args"]["client"]) == (6e6, 1)


def test_the_counters_count_tasks_in_flight_and_in_each_stage(tmp_path, trace):
    document = written(tmp_path, trace)
    in_flight = {e["ts"]: e["args"]["tasks"] for e in of(document, "C", name="tasks in flight")}
    assert in_flight == {0.0: 2, 4e6: 2, 5e6: 0, 6e6: 1, 6.5e6: 2, 12e6: 1}
    stages = {
        e["ts"] / 1e6: tuple(e["args"].values()) for e in of(document, "C", name="tasks by stage")
    }
    assert stages == {  # (download, compute, upload) from this second on
        0.0: (2, 0, 0),
        1.0: (1, 1, 0),
        2.0: (0, 2, 0),
        3.0: (0, 1, 1),
        4.0: (1, 1, 0),
        5.0: (0, 0, 0),
        6.0: (1, 0, 0),
        6.5: (2, 0, 0),
        7.0: (1, 1, 0),
        8.0: (0, 1, 0),
        9.0: (0, 1, 1),
        10.0: (0, 0, 2),
        12.0: (0, 0, 0),
    }


def in_flight(tmp_path, events):
    """Returns the counter of tasks in flight by time in s, of events that are told by name."""
    trace = Trace()
    for time, kind, client, dispatch in events:
        trace.record(time, Event[kind], client, dispatch)
    counters = of(written(tmp_path, trace), "C", name="tasks in flight")
    return {e["ts"] / 1e6: e["args"]["tasks"] for e in counters}


def test_a_task_for_peers_is_over_when_it_is_computed(tmp_path):
    assert in_flight(
        tmp_path,
        [
            (0.0, "DISPATCH", 0, 0),
            (1.0, "COMPUTE_START", 0, 0),
            (2.0, "DISPATCH", 1, 0),
            (3.0, "COMPUTE_END", 0, 0),
            (3.0, "TRANSFER", 1, -1),
            (4.0, "COMPUTE_START", 1, 0),
        ],
    ) == {0.0: 1, 2.0: 2, 3.0: 1}


@pytest.mark.parametrize(
    "fault", ["DROPOUT", "CRASH", "DEPARTURE", "DOWNLOAD_LOST", "UPLOAD_LOST", "CANCELLED"]
)
def test_each_fault_that_ends_a_task_ends_its_flight(tmp_path, fault):
    events = [(0.0, "DISPATCH", 0, 0), (0.0, "DOWNLOAD_START", 0, 0), (1.0, "DOWNLOAD_END", 0, 0)]
    assert in_flight(tmp_path, [*events, (5.0, fault, 0, 0)]) == {0.0: 1, 5.0: 0}


def test_a_message_that_dies_where_it_waits_is_in_flight_until_then(tmp_path):
    at_server = [(0.0, "DISPATCH", 0, 0)]
    at_device = [*at_server, (1.0, "DOWNLOAD_START", 0, 0), (2.0, "DOWNLOAD_END", 0, 0)]
    nowhere = [*at_device, (3.0, "COMPUTE_START", 0, 0)]
    expires = (4.0, "EXPIRED", 0, 0)
    assert in_flight(tmp_path, [*at_server, expires]) == {0.0: 1, 4.0: 0}
    assert in_flight(tmp_path, [*at_device, expires]) == {0.0: 1, 4.0: 0}
    assert in_flight(tmp_path, [*nowhere, expires]) == {0.0: 1}
    assert in_flight(tmp_path, [*nowhere, expires, (5.0, "COMPUTE_END", 0, 0)])[5.0] == 0


def test_metrics_are_counters_where_they_are_numbers(tmp_path, trace, row):
    history = [row(0, 0.0, accuracy=0.1), row(1, 4.0, accuracy=math.nan), row(2, 9.5, accuracy=0.5)]
    counters = of(written(tmp_path, trace, history), "C", name="accuracy")
    assert [(e["ts"], e["args"]["value"]) for e in counters] == [(0.0, 0.1), (9.5e6, 0.5)]


@for_each("length", range(33))
def test_a_trace_cut_anywhere_is_still_a_valid_timeline(tmp_path, trace, length):
    cut = Trace()
    columns = (trace.time, trace.kind, trace.client, trace.dispatch, trace.bytes, trace.value)
    for time, kind, client, dispatch, size, value in list(zip(*columns, strict=True))[:length]:
        cut.record(time, Event(kind), client, dispatch, size, value)
    check_format(written(tmp_path, cut))


def random_trace(seed, clients=4, num_tasks=60):
    """Tasks at random times, overlapping freely, each with a chance to fail at every event."""
    rng = np.random.default_rng(seed)
    path = [Event.DISPATCH, Event.DOWNLOAD_START, Event.DOWNLOAD_END, Event.COMPUTE_START]
    path += [Event.COMPUTE_END, Event.UPLOAD_START, Event.UPLOAD_END]
    faults = [Event.DROPOUT, Event.CRASH, Event.DEPARTURE]
    events, numbers = [], dict.fromkeys(range(clients), 0)
    for _ in range(num_tasks):
        client = int(rng.integers(clients))
        time = 30.0 * rng.random()
        for kind in path:
            stopped = kind is not Event.DISPATCH and rng.random() < 0.1
            chosen = faults[rng.integers(3)] if stopped else kind
            events.append((time, chosen, client, numbers[client]))
            if stopped:
                break
            if kind is not Event.COMPUTE_END:  # the upload begins at that instant
                time += float(rng.choice([0.0, 0.1, rng.random()]))
        numbers[client] += 1
    trace = Trace()
    for event in sorted(events, key=lambda e: e[0]):
        trace.record(*event)
    return trace


@for_each("seed", range(10))
def test_overlapping_tasks_with_faults_never_nest_wrongly(tmp_path, seed):
    trace = random_trace(seed)
    document = written(tmp_path, trace)
    check_format(document)
    starts = (Event.DOWNLOAD_START, Event.COMPUTE_START, Event.UPLOAD_START)
    assert len(of(document, "X")) == sum(trace.counts[kind] for kind in starts)
    assert len(of(document, "i", pid=2)) == sum(trace.counts[kind] for kind in FAULTS)
    # The counter is the number of dispatches minus the number of ends so far, counted one by one.
    ends = (Event.UPLOAD_END, Event.DROPOUT, Event.CRASH, Event.DEPARTURE)
    for event in of(document, "C", name="tasks in flight"):
        past = [
            k for t, k in zip(trace.time, trace.kind, strict=True) if t * 1e6 <= event["ts"] + 1e-3
        ]
        expected = past.count(Event.DISPATCH) - sum(past.count(kind) for kind in ends)
        assert event["args"]["tasks"] == expected


@pytest.mark.parametrize("chunk", [1, 7])
def test_reading_the_trace_in_parts_changes_nothing(tmp_path, monkeypatch, chunk):
    trace = random_trace(0)
    whole = written(tmp_path, trace)
    monkeypatch.setattr(timeline, "_CHUNK", chunk)
    assert written(tmp_path, trace) == whole


def test_of_a_long_run_every_second_client_has_a_track_and_counters_are_of_all(
    tmp_path, monkeypatch
):
    trace = random_trace(0)
    whole = written(tmp_path, trace)
    monkeypatch.setattr(timeline, "MOST_EVENTS", len(trace) - 1)
    half = written(tmp_path, trace)
    check_format(half)

    def clients(document):
        names = of(document, "M", name="thread_name", pid=2)
        return {int(event["args"]["name"].split()[1]) for event in names}

    assert clients(whole) == {0, 1, 2, 3}
    assert clients(half) == {0, 2}
    assert of(half, "C") == of(whole, "C")
    even = {event["tid"] for event in of(half, "M", name="thread_name", pid=2)}
    assert of(half, "X") == [event for event in of(whole, "X") if event["tid"] in even]


def test_the_same_run_is_the_same_file(tmp_path, monkeypatch):
    write_timeline(random_trace(0), tmp_path / "one.json.gz")
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_timeline(random_trace(0), tmp_path / "two.json.gz")
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()


def test_what_is_kept_of_a_task_goes_when_it_is_over():
    """Memory has the tasks under way, however many there were."""
    trace = random_trace(1, num_tasks=300)
    made = timeline._Timeline(trace, ())
    most = 0
    for rows in trace.parts(1):
        list(made.lines(rows))
        most = max(most, len(made._tasks))
    assert 0 < most < 60
    list(made.lines(trace.parts(1).__next__()[:0]))
    assert len(made._tasks) == 0


def test_times_of_a_long_run_are_exact_to_the_nanosecond(tmp_path):
    # 2**-20 s = 953.67 ns, after 90 days; both times and their sum are exact in float64.
    trace = Trace()
    trace.record(90 * 86400.0, Event.COMPUTE_START, 0, 0)
    trace.record(90 * 86400.0 + 2.0**-20, Event.COMPUTE_END, 0, 0)
    path = tmp_path / "timeline.json.gz"
    write_timeline(trace, path)
    assert '"ts":7776000000000.000,"dur":0.954' in gzip.decompress(path.read_bytes()).decode()


def test_an_empty_trace_gives_a_valid_file(tmp_path):
    document = written(tmp_path, Trace())
    check_format(document)
    assert of(document, "X") == []
