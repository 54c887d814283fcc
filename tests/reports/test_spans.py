import math

import pytest

from fl.reports.spans import STAGES, dispatches, spans
from fl.simulation.kernel.trace import Event, Trace


def test_stages_end_with_their_end_event_or_with_the_fault(trace):
    found = spans(trace)
    rows = zip(
        found.client.tolist(),
        found.dispatch.tolist(),
        [STAGES[stage] for stage in found.stage],
        found.start.tolist(),
        found.end.tolist(),
        found.finished.tolist(),
        strict=True,
    )
    assert list(rows) == [
        (0, 0, "download", 0.0, 1.0, True),
        (0, 0, "compute", 1.0, 3.0, True),
        (0, 0, "upload", 3.0, 4.0, True),
        (0, 1, "download", 4.0, 5.0, False),  # lost
        (1, 0, "download", 0.0, 2.0, True),
        (1, 0, "compute", 2.0, 5.0, False),  # dropped out
        (1, 1, "download", 6.0, 7.0, True),
        (1, 1, "compute", 7.0, 9.0, True),
        (1, 1, "upload", 9.0, 12.0, True),  # its message expired at 11, the upload went on
        (1, 2, "download", 6.5, 8.0, True),
        (1, 2, "compute", 9.0, 10.0, True),
        (1, 2, "upload", 10.0, 12.0, False),  # cut off by the end of the run
    ]


def test_a_task_is_in_flight_from_dispatch_to_reply_or_fault(trace):
    found = dispatches(trace)
    rows = zip(
        found.client.tolist(),
        found.dispatch.tolist(),
        found.start.tolist(),
        found.end.tolist(),
        strict=True,
    )
    assert list(rows) == [
        (0, 0, 0.0, 4.0),
        (1, 0, 0.0, 5.0),
        (0, 1, 4.0, 5.0),
        (1, 1, 6.0, 12.0),
        (1, 2, 6.5, math.inf),
    ]


def test_a_task_for_peers_is_over_when_it_is_computed():
    trace = Trace()
    trace.record(0.0, Event.DISPATCH, 0, 0)
    trace.record(1.0, Event.COMPUTE_START, 0, 0)
    trace.record(2.0, Event.DISPATCH, 1, 0)
    trace.record(3.0, Event.COMPUTE_END, 0, 0)
    trace.record(3.0, Event.TRANSFER, 1, -1, 100, 0.0)
    trace.record(4.0, Event.COMPUTE_START, 1, 0)
    found = dispatches(trace)
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == [
        (0.0, 3.0),
        (2.0, math.inf),
    ]


@pytest.mark.parametrize(
    "fault",
    [
        Event.DROPOUT,
        Event.CRASH,
        Event.DEPARTURE,
        Event.DOWNLOAD_LOST,
        Event.UPLOAD_LOST,
    ],
)
def test_each_fault_that_ends_a_task_ends_its_stage(fault):
    trace = Trace()
    trace.record(0.0, Event.DISPATCH, 0, 0)
    trace.record(0.0, Event.DOWNLOAD_START, 0, 0)
    trace.record(2.0, fault, 0, 0)
    trace.record(9.0, Event.TIMEOUT)
    assert spans(trace).end.tolist() == [2.0]
    assert spans(trace).finished.tolist() == [False]
    assert dispatches(trace).end.tolist() == [2.0]


@pytest.mark.parametrize(
    "event", [Event.SLOWDOWN, Event.EXPIRED, Event.CLIENT_ERROR, Event.REJECTED]
)
def test_what_does_not_stop_the_work_does_not_end_the_stage(event):
    trace = Trace()
    trace.record(0.0, Event.COMPUTE_START, 0, 0)
    trace.record(1.0, event, 0, 0)
    trace.record(2.0, Event.COMPUTE_END, 0, 0)
    assert spans(trace).end.tolist() == [2.0]
    assert spans(trace).finished.tolist() == [True]


def test_a_departure_between_stages_ends_none():
    trace = Trace()
    for time, kind in [
        (0, "DISPATCH"),
        (0, "DOWNLOAD_START"),
        (1, "DOWNLOAD_END"),
        (5, "DEPARTURE"),
    ]:
        trace.record(float(time), Event[kind], 3, 0)
    assert spans(trace).end.tolist() == [1.0]
    assert dispatches(trace).end.tolist() == [5.0]


def test_a_message_that_dies_where_it_waits_is_in_flight_until_then():
    trace = Trace()
    for dispatch, waits_at in enumerate(("server", "device", "nowhere")):
        trace.record(0.0, Event.DISPATCH, 0, dispatch)
        if waits_at != "server":
            trace.record(1.0, Event.DOWNLOAD_START, 0, dispatch)
            trace.record(2.0, Event.DOWNLOAD_END, 0, dispatch)
        if waits_at == "nowhere":
            trace.record(3.0, Event.COMPUTE_START, 0, dispatch)
        trace.record(4.0, Event.EXPIRED, 0, dispatch)
    assert dispatches(trace).end.tolist() == [4.0, 4.0, math.inf]


def test_an_empty_trace_has_neither():
    assert len(spans(Trace())) == 0
    assert len(dispatches(Trace())) == 0
