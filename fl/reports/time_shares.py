"""Where the time of a run's tasks goes: every stage and every term of its runtime, as shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.simulation.kernel.trace import Event, Trace

_OF_WAITING = (Event.CLIENT_POLL,)
_OF_DOWNLOADS = (Event.DOWN_CALLS,)
_OF_WORK = (Event.TASK_POLL, Event.APP_START, Event.DECODE, Event.STEPS, Event.THROTTLE)
_OF_UPLOADS = (Event.ENCODE, Event.REPLY_POLL, Event.UP_CALLS)
_OF_SERVER = (
    Event.SERVER_SEND,
    Event.SERVER_POLL,
    Event.SERVER_RECEIVE,
    Event.AGGREGATE,
    Event.SERVER_EVALUATE,
)


def time_shares(trace: Trace) -> dict[str, dict[str, float]]:
    """Returns what takes how much of the time between messages and their replies, and of the run.

    Returns:
        "clients": of all tasks that were answered, from the dispatch to the end of the upload, the
        share of each stage and term. What is left of a stage without its terms is called "waiting",
        "download", "queued", "compute", "upload"; all add up to 1. "server": what the server's
        process does, as shares of the time of the trace's last event. Empty without tasks or time.
    """
    kind, time, value = trace.kind, trace.time, trace.value
    own = trace.client >= 0
    # A task's number among all, from two numbers that name it.
    names = np.stack([trace.client[own], trace.dispatch[own]])
    _, task = np.unique(names, axis=1, return_inverse=True)
    task = task.reshape(-1)
    kinds, times, values = kind[own], time[own], value[own]
    count = int(task.max(initial=-1)) + 1

    def at(event: Event) -> NDArray[np.float64]:
        """Returns when an event of each task happened; NaN where it has not."""
        found = np.full(count, np.nan)
        rows = kinds == event
        found[task[rows]] = times[rows]
        return found

    def spent(event: Event) -> NDArray[np.float64]:
        rows = kinds == event
        return np.bincount(task[rows], values[rows], minlength=count).astype(np.float64)

    stages = [
        ("waiting", at(Event.DISPATCH), at(Event.DOWNLOAD_START), _OF_WAITING),
        ("download", at(Event.DOWNLOAD_START), at(Event.DOWNLOAD_END), _OF_DOWNLOADS),
        ("queued", at(Event.DOWNLOAD_END), at(Event.COMPUTE_START), ()),
        ("compute", at(Event.COMPUTE_START), at(Event.COMPUTE_END), _OF_WORK),
        ("upload", at(Event.UPLOAD_START), at(Event.UPLOAD_END), _OF_UPLOADS),
    ]
    whole = at(Event.UPLOAD_END) - at(Event.DISPATCH)
    answered = np.isfinite(whole)
    total = float(whole[answered].sum())
    shares: dict[str, dict[str, float]] = {"clients": {}, "server": {}}
    for stage, begins, ends, terms in stages if total > 0 else ():
        left = float((ends - begins)[answered].sum())
        for term in terms:
            seconds = float(spent(term)[answered].sum())
            shares["clients"][term.name.lower()] = seconds / total
            left -= seconds
        shares["clients"][stage] = max(0.0, left) / total
    for term in _OF_SERVER if len(time) and time[-1] > 0 else ():
        shares["server"][term.name.lower()] = float(value[kind == term].sum() / time[-1])
    return shares
