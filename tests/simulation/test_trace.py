"""What a trace counts as faults."""

from __future__ import annotations

from fl.simulation.kernel.trace import Event, Trace


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
