import pytest

from fl.reports.spans import STAGES, spans
from fl.simulation.kernel.trace import Event, Trace


def test_stages_end_with_their_end_event_or_with_the_fault(trace):
    (found,) = spans(trace)
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
    assert next(spans(trace)).end.tolist() == [2.0]
    assert next(spans(trace)).finished.tolist() == [False]


@pytest.mark.parametrize(
    "event", [Event.SLOWDOWN, Event.EXPIRED, Event.CLIENT_ERROR, Event.REJECTED]
)
def test_what_does_not_stop_the_work_does_not_end_the_stage(event):
    trace = Trace()
    trace.record(0.0, Event.COMPUTE_START, 0, 0)
    trace.record(1.0, event, 0, 0)
    trace.record(2.0, Event.COMPUTE_END, 0, 0)
    assert next(spans(trace)).end.tolist() == [2.0]
    assert next(spans(trace)).finished.tolist() == [True]


def test_a_departure_between_stages_ends_none():
    trace = Trace()
    for time, kind in [
        (0, "DISPATCH"),
        (0, "DOWNLOAD_START"),
        (1, "DOWNLOAD_END"),
        (5, "DEPARTURE"),
    ]:
        trace.record(float(time), Event[kind], 3, 0)
    assert next(spans(trace)).end.tolist() == [1.0]


def test_an_empty_trace_has_none():
    assert len(next(spans(Trace()))) == 0


def test_windows_of_a_few_events_have_the_same_work_as_the_whole(trace):
    trace.record(12.0, Event.ALL_REDUCE, 0, -1, value=9.0)  # from 3, beyond several windows

    def worked(found):
        """Returns what each client is at in each quarter of a second, sorted."""
        ticks = [
            (client, stage, quarter)
            for client, stage, start, end in zip(
                found.client.tolist(),
                found.stage.tolist(),
                found.start.tolist(),
                found.end.tolist(),
                strict=True,
            )
            for quarter in range(round(4 * start), round(4 * end))
        ]
        return sorted(ticks)

    whole = worked(next(spans(trace)))
    for most in (1, 2, 3, 5, 8):
        windows = list(spans(trace, most))
        assert len(windows) > 2
        assert sorted(tick for window in windows for tick in worked(window)) == whole
        ends = [float(max(window.end, default=0.0)) for window in windows]
        begins = [float(min(window.start, default=12.0)) for window in windows]
        assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
