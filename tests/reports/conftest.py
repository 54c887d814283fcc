"""One evaluation row, and one trace small enough to work out by hand."""

from collections.abc import Callable

import pytest

from fl.reports.history import Row
from fl.simulation.kernel.trace import Event, Trace


def _row(round: int, time_s: float, **metrics: float) -> Row:
    """Round r has cost r wall seconds, 1000 r bytes down, 500 r up and 10 r joules."""
    return {
        "round": round,
        "time_s": time_s,
        "wall_s": float(round),
        "bytes_down": 1000 * round,
        "bytes_up": 500 * round,
        "energy_j": 10.0 * round,
        **metrics,
    }


@pytest.fixture
def row() -> Callable[..., Row]:
    return _row


@pytest.fixture
def trace() -> Trace:
    """Two clients, 12 s.

    client 0: task 0 succeeds; the download of task 1 is lost at 5.
    client 1: task 0 drops out at 5, the server learns at 6; tasks 1 and 2 overlap: 2 downloads from
    6.5 to 8 while 1 downloads (6 to 7) and computes (7 to 9); task 1's message expires at 11 but
    its upload goes on to 12; task 2 still uploads when the trace ends.
    """
    events = [
        (0.0, Event.DISPATCH, 0, 0, 100),
        (0.0, Event.DOWNLOAD_START, 0, 0, 100),
        (0.0, Event.DISPATCH, 1, 0, 100),
        (0.0, Event.DOWNLOAD_START, 1, 0, 100),
        (1.0, Event.DOWNLOAD_END, 0, 0, 100),
        (1.0, Event.COMPUTE_START, 0, 0, 0, 2.0),
        (2.0, Event.DOWNLOAD_END, 1, 0, 100),
        (2.0, Event.COMPUTE_START, 1, 0, 0, 9.0),
        (3.0, Event.COMPUTE_END, 0, 0),
        (3.0, Event.UPLOAD_START, 0, 0, 50),
        (4.0, Event.UPLOAD_END, 0, 0, 50),
        (4.0, Event.DISPATCH, 0, 1, 100),
        (4.0, Event.DOWNLOAD_START, 0, 1, 100),
        (5.0, Event.DROPOUT, 1, 0),
        (5.0, Event.DOWNLOAD_LOST, 0, 1, 100),
        (6.0, Event.NODE_UNAVAILABLE, 1, 0),
        (6.0, Event.DISPATCH, 1, 1, 100),
        (6.0, Event.DOWNLOAD_START, 1, 1, 100),
        (6.5, Event.DISPATCH, 1, 2, 100),
        (6.5, Event.DOWNLOAD_START, 1, 2, 100),
        (7.0, Event.DOWNLOAD_END, 1, 1, 100),
        (7.0, Event.SLOWDOWN, 1, 1, 0, 2.0),
        (7.0, Event.COMPUTE_START, 1, 1, 0, 2.0),
        (8.0, Event.DOWNLOAD_END, 1, 2, 100),
        (9.0, Event.COMPUTE_END, 1, 1),
        (9.0, Event.UPLOAD_START, 1, 1, 50),
        (9.0, Event.COMPUTE_START, 1, 2, 0, 1.0),
        (10.0, Event.COMPUTE_END, 1, 2),
        (10.0, Event.UPLOAD_START, 1, 2, 50),
        (11.0, Event.EXPIRED, 1, 1),
        (11.5, Event.TIMEOUT, -1, -1, 0, 2.0),
        (12.0, Event.UPLOAD_END, 1, 1, 50),
    ]
    recorded = Trace()
    for event in events:
        recorded.record(*event)
    return recorded
