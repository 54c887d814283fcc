"""Which clients contributed to a run, and why the others did not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.simulation.kernel.trace import Event, Trace

REASONS = {
    "never_asked": "never asked",
    "failed": "failed",
    "dropped_out": "dropped out",
    "message_lost": "message lost",
    "too_late": "too late or not needed",
    "unfinished": "still at work at the end",
}
"""Why a client that was available did not contribute, as in the summary and as said to people."""

_ENDS: dict[str, tuple[Event, ...]] = {
    "failed": (Event.CLIENT_ERROR, Event.REJECTED),
    "dropped_out": (Event.DROPOUT, Event.CRASH, Event.DEPARTURE),
    "message_lost": (Event.DOWNLOAD_LOST, Event.UPLOAD_LOST),
}
_IN_VAIN = (Event.UPLOAD_END, Event.DISCARDED, Event.EXPIRED, Event.CANCELLED)
_READ = {"used": (Event.APPLIED,), "asked": (Event.DISPATCH,), **_ENDS, "in_vain": _IN_VAIN}
_LISTED = 1000  # clients named for each reason


def participation(
    trace: Trace, answers: Mapping[int, int], available: NDArray[np.bool_]
) -> dict[str, Any]:
    """Returns how many clients contributed, and who did not for which reason.

    A client has contributed if a strategy reported to have used an update of it; where strategies
    report nothing of the kind, as Flower's own, if the ServerApp has read an answer of it that it
    did not reject. Of those that have not, each counts with what became of most of its tasks:

    - failed: its code raised, or its replies were refused;
    - dropped_out: it left, crashed or dropped out;
    - message_lost: on one way or the other;
    - too_late: it answered, was told to stop, or its message ran out of time, and nothing was used:
      of others that were sooner there may have been enough;
    - unfinished: it was at work when the run ended.

    Args:
        trace: of the run.
        answers: how many answers of each client were read and not rejected.
        available: which clients were there at some time, shape (n,).

    Returns:
        "available" and "contributed", numbers of clients, and "others": by reason the "number" of
        clients, and the first of them in "clients".
    """
    n = len(available)
    count = {name: np.zeros(n, np.int64) for name in _READ}
    for rows in trace.parts():
        for name, kinds in _READ.items():
            clients = rows["client"][np.isin(rows["kind"], kinds)]
            count[name] += np.bincount(clients[clients >= 0], minlength=n)
    used, asked = count["used"], count["asked"]
    if not used.any():
        used[[i for i, number in answers.items() if number > 0]] = 1
    ends = {reason: count[reason] for reason in _ENDS}
    rest = np.maximum(0, asked - sum(ends.values()))
    in_vain = count["in_vain"] > ends["failed"]  # a failure is answered, too
    ends["too_late"] = np.where(in_vain, rest, 0)
    ends["unfinished"] = np.where(in_vain, 0, rest)
    most = np.argmax(np.stack(list(ends.values())), axis=0)
    others: dict[str, Any] = {}
    without = (used == 0) & (available | (asked > 0))
    for reason in REASONS:
        if reason == "never_asked":
            found = without & (asked == 0)
        else:
            found = without & (asked > 0) & (most == list(ends).index(reason))
        who = np.flatnonzero(found)
        if len(who):
            others[reason] = {"number": len(who), "clients": who[:_LISTED].tolist()}
    return {
        "available": int((available | (asked > 0)).sum()),
        "contributed": int((used > 0).sum()),
        "others": others,
    }


def told(found: Mapping[str, Any], named: int = 5) -> str:
    """Returns who did not contribute, and why, on one line; nobody is an empty text.

    Args:
        found: what `participation` returned.
        named: how many clients are named for each reason.
    """
    parts = []
    for reason, others in found["others"].items():
        clients = ", ".join(map(str, others["clients"][:named]))
        who = "client" if others["number"] == 1 else "clients"
        more = ", ..." if others["number"] > named else ""
        parts.append(f"{others['number']} {REASONS[reason]} ({who} {clients}{more})")
    missing = sum(others["number"] for others in found["others"].values())
    return f"{missing} of {found['available']} available clients: {'; '.join(parts)}" * bool(parts)
